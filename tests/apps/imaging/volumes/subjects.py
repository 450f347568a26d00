"""One of each kind of volume, with the values and the affine that other libraries give for it."""

import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from apps.imaging.dicom.series import open_series
from apps.imaging.volumes.nifti import open_nifti
from apps.imaging.volumes.nonzero_crop import Cropped
from apps.imaging.volumes.volume import Shape, Volume
from tests.apps.imaging import dicom_files
from tests.apps.imaging.dicom_files import OBLIQUE, recode, series, write_slice

OBLIQUE_GRID = np.array(
    [[-0.8934, -0.0865, 0.1226, 20], [-0.0987, 0.8372, -0.2532, -31], [0.045, 0.1185, 1.8791, 7], [0, 0, 0, 1.0]]
)
BOTH = frozenset(["tilt", "spacing"])


@dataclass(frozen=True)
class Subject:
    """A volume on disk."""

    path: Path
    """The file or folder."""
    reopen: Callable[[Path], Volume]
    """Reads the headers, there or wherever a copy lies."""
    values: npt.NDArray[Any]
    """(x, y, z)."""
    affine: npt.NDArray[np.float64]
    exact: bool = True
    """True if the values are the very numbers, without interpolation or a scale."""

    def open(self) -> Volume:
        """Read the headers again."""
        return self.reopen(self.path)


@dataclass(frozen=True)
class Made:
    """A volume, and its reader, whose voxels are one number: what is read from it takes no memory of its own."""

    shape: Shape
    dtype: np.dtype[Any]
    slope: float = 1.0
    intercept: float = 0.0

    def read(self, out: npt.NDArray[Any]) -> None:
        """Fill the planes."""
        out[...] = 7

    def allocated(self, make: Callable[[Any, Any], Any], shape: Shape) -> int:
        """Bytes that Python and NumPy hold at most while a reader onto ``shape`` is made and read plane by plane."""
        out = np.empty((1, shape[1], shape[0]), np.float32)
        make(self, self).read(out)  # whatever is loaded at the first use
        tracemalloc.start()
        reader = make(self, self)
        for _ in range(shape[2]):
            reader.read(out)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used


RESHAPED: tuple[tuple[Shape, Shape], ...] = (
    ((300, 200, 30), (300, 200, 40)),
    ((300, 200, 30), (150, 100, 20)),
    ((150, 100, 20), (300, 200, 40)),
    ((200, 100, 10), (100, 300, 10)),
    ((100, 300, 10), (300, 100, 20)),
)
"""A volume's grid and the network's."""

Build = Callable[[Path, Shape, int], Subject]
"""Makes a subject of some shape in an empty folder, from a seed."""


def _nifti(
    name: str = "image.nii.gz",
    dtype: str = "int16",
    *,
    affine: npt.NDArray[np.float64] = OBLIQUE_GRID,
    scale: tuple[float, float] | None = None,
    kind: Any = nib.Nifti1Image,
    trailing: int = 0,
    extension: bool = False,
    broken: bool = False,
) -> Build:
    def build(folder: Path, shape: Shape, seed: int) -> Subject:
        values = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
        if broken:
            values[0, 0, :3] = np.nan, np.inf, -np.inf
        image = kind(values.reshape(*shape, *[1] * trailing), affine)
        if scale is not None:
            image.header.set_slope_inter(*scale)
        if extension:
            image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"about nobody"))
        nib.save(image, folder / name)
        loaded: Any = nib.load(folder / name)
        found = np.asarray(loaded.dataobj, np.float64).reshape(shape)
        return Subject(folder / name, open_nifti, found, loaded.affine, exact=scale is None)

    return build


def _oriented(code: str) -> Build:
    """A file whose axes point there."""
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(code)))
    affine = np.diag([0.9, 1.1, 2.0, 1.0]) @ inv_ornt_aff(turn, (40, 33, 6))
    return _nifti(affine=affine)


def _grid(shape: Shape, orientation: Any) -> npt.NDArray[np.float64]:
    """The affine of ``dicom_files.series`` (PS3.3 C.7.6.2.1.1), in NIfTI's axes."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    affine = np.eye(4)
    affine[:3] = np.column_stack([0.7 * row, 0.8 * column, 2.5 * np.cross(row, column), [-40.0, 30.0, 12.0]])
    return np.diag([-1.0, -1, 1, 1]) @ affine


def _dicom(
    syntax: str | None = None,
    *,
    orientation: Any = (1, 0, 0, 0, 1, 0),
    packed: int | None = None,
    scales: bool = False,
    **fields: Any,
) -> Build:
    def build(folder: Path, shape: Shape, seed: int) -> Subject:
        # UIDs are of the content, so that another seed is another study.
        path = folder / "study"
        stored = series(path, plane=shape[:2], count=shape[2], seed=seed, orientation=orientation, **fields)
        values = (-1.0 - stored if fields.get("PhotometricInterpretation") == "MONOCHROME1" else stored) - 1024.0
        if scales:
            values = _scale_each(path, stored)
        if syntax is not None:
            recode(path, syntax)
        if packed is not None:
            path = _packed(path, packed)
        return Subject(path, open_series, values, _grid(shape, orientation), exact=not scales)

    return build


def _packed(folder: Path, compression: int) -> Path:
    """A zip of a folder, next to it."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", compression) as archive:
        for number, one in enumerate(sorted(folder.iterdir())):
            archive.write(one, f"a/{number}.dcm")
    return path


def _scale_each(folder: Path, stored: npt.NDArray[np.int16]) -> npt.NDArray[np.float64]:
    """Give each slice a scale of its own; the values."""
    import pydicom

    values = np.empty(stored.shape)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        z = round((float(data.ImagePositionPatient[2]) - 12) / 2.5)
        data.RescaleSlope, data.RescaleIntercept = 1.5 + z, -10 * z
        data.save_as(path)
        values[..., z] = stored[..., z] * (1.5 + z) - 10 * z
    return values


def _enhanced(*, packed: bool = False) -> Build:
    def build(folder: Path, shape: Shape, seed: int) -> Subject:
        voxels = np.random.default_rng(seed).integers(0, 3000, shape).astype(np.int16)
        path = folder / "study"
        path.mkdir()
        dicom_files.enhanced(path / "frames.dcm", voxels, OBLIQUE)
        if packed:
            path = _packed(path, zipfile.ZIP_DEFLATED)
        return Subject(path, open_series, voxels - 1024.0, _grid(shape, OBLIQUE))

    return build


def _regridded(tilt: float, gaps: tuple[float, ...]) -> Build:
    """Slices that lie sideways or unevenly, repaired; the reference asks where each voxel lies in the slices."""

    def build(folder: Path, shape: Shape, seed: int) -> Subject:
        (folder / "study").mkdir()
        steps = np.resize(gaps, shape[2] - 1)
        heights = np.concatenate([[0], np.cumsum(steps)])
        positions = np.column_stack([np.full(shape[2], -4.0), 7.0 + tilt * heights, heights])
        slices = np.random.default_rng(seed).integers(0, 3000, shape).astype(np.int16)
        for z, position in enumerate(positions):
            write_slice(folder / "study" / f"{z}.dcm", slices[..., z].T.copy(), position, (1, 0, 0, 0, 1, 0))
        volume = _repaired(folder / "study")
        values = _interpolated(slices - 1024.0, positions, volume.affine, volume.shape)
        return Subject(folder / "study", _repaired, values, volume.affine, exact=False)

    return build


def _repaired(path: Path) -> Volume:
    return open_series(path, repair=BOTH)


def _interpolated(
    slices: npt.NDArray[np.float64], positions: npt.NDArray[np.float64], affine: npt.NDArray[np.float64], shape: Shape
) -> npt.NDArray[np.float64]:
    """Between the two slices around each plane, in each of which the point is looked up by its millimetres."""
    from scipy.ndimage import map_coordinates

    x, y, z = np.meshgrid(*map(np.arange, shape), indexing="ij")
    points = np.stack([x, y, z, np.ones(shape)], axis=-1) @ (np.diag([-1.0, -1, 1, 1]) @ affine).T
    seen = [
        map_coordinates(
            slices[..., number],
            [(points[..., 0] - place[0]) / 0.7, (points[..., 1] - place[1]) / 0.8],
            order=1,
            mode="nearest",
        )
        for number, place in enumerate(positions)
    ]
    values = np.empty(shape)
    for plane in range(shape[2]):
        height = np.clip(points[0, 0, plane, 2], positions[0, 2], positions[-1, 2])
        upper = max(1, min(int(np.searchsorted(positions[:, 2], height)), len(positions) - 1))
        low, high = positions[upper - 1, 2], positions[upper, 2]
        share = (height - low) / (high - low)
        values[..., plane] = (1 - share) * seen[upper - 1][..., plane] + share * seen[upper][..., plane]
    return values


def _cropped(whole: Build, low: Shape, margin: Shape) -> Build:
    """The box of a volume from ``low``, without ``margin`` voxels at the other ends."""

    def build(folder: Path, shape: Shape, seed: int) -> Subject:
        subject = whole(folder, shape, seed)
        high = tuple(size - less for size, less in zip(subject.values.shape, margin, strict=True))
        box = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
        affine = subject.affine.copy()
        affine[:, 3] = subject.affine @ [*low, 1]

        def reopen(path: Path) -> Volume:
            return Cropped(subject.reopen(path), low, (high[0], high[1], high[2]))

        return Subject(subject.path, reopen, subject.values[box], affine, subject.exact)

    return build


TILTED, UNEVEN = _regridded(0.3, (2.0,)), _regridded(0.0, (2.0, 2.0, 2.0, 3.0))

SUBJECTS: Mapping[str, Build] = {
    **{f"nifti {dtype}": _nifti(dtype=dtype) for dtype in ("uint8", "int16", ">i2", "int32", "float32", ">f8")},
    "nifti plain": _nifti("image.nii"),
    "nifti plain big-endian": _nifti("image.nii", ">f4"),
    "nifti scaled": _nifti(scale=(0.5, -3)),
    "nifti plain scaled": _nifti("IMAGE.NII", "uint8", scale=(-2, 100)),
    "nifti 2": _nifti(kind=nib.Nifti2Image),
    "nifti 4d": _nifti(trailing=1),
    "nifti 5d": _nifti("image.nii", trailing=2),
    "nifti with extension": _nifti(extension=True),
    "nifti not finite": _nifti(dtype="float32", broken=True),
    **{f"nifti {code}": _oriented(code) for code in ("RAS", "LPS", "SRA", "PIR", "AIL")},
    "dicom axial": _dicom(),
    "dicom sagittal": _dicom(orientation=(0, 1, 0, 0, 0, -1)),
    "dicom mirrored": _dicom(orientation=(-1, 0, 0, 0, 1, 0)),
    "dicom oblique": _dicom(orientation=OBLIQUE),
    "dicom 12 bits": _dicom(PixelRepresentation=0, BitsStored=12, HighBit=11),
    "dicom inverted": _dicom(PhotometricInterpretation="MONOCHROME1"),
    "dicom scaled by slice": _dicom(scales=True),
    **{
        f"dicom {syntax}": _dicom(syntax)
        for syntax in (
            "ImplicitVRLittleEndian",
            "ExplicitVRBigEndian",
            "DeflatedExplicitVRLittleEndian",
            "RLELossless",
            "JPEGLSLossless",
            "JPEG2000Lossless",
        )
    },
    "dicom enhanced": _enhanced(),
    "dicom enhanced zip": _enhanced(packed=True),
    "dicom zip": _dicom(packed=zipfile.ZIP_DEFLATED),
    "dicom stored zip": _dicom(packed=zipfile.ZIP_STORED),
    "dicom RLE zip": _dicom("RLELossless", packed=zipfile.ZIP_DEFLATED),
    "dicom tilted": TILTED,
    "dicom uneven": UNEVEN,
    "dicom tilted and uneven": _regridded(-0.2, (1.1, 2.9, 2.0)),
    "box of nifti": _cropped(_nifti(), (2, 1, 3), (1, 0, 0)),
    "box of one voxel": _cropped(_nifti(scale=(0.5, -3)), (4, 5, 2), (7, 4, 3)),
    "box of dicom": _cropped(_dicom(orientation=OBLIQUE), (1, 2, 1), (3, 2, 0)),
    "box of a box": _cropped(_cropped(_nifti(), (1, 1, 1), (1, 1, 1)), (2, 0, 1), (0, 3, 0)),
    "box of a repaired series": _cropped(TILTED, (1, 0, 2), (0, 2, 0)),
}
