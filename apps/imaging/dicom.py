"""A DICOM folder as volumes: series by their headers, geometry from every slice, pixels one slice at a time.

Reading refuses what would give a wrong volume in silence: a missing slice, uneven spacing, mixed orientations, two
slices in one place. Nothing it says or returns holds a patient's identifier.
"""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.slices import stack
from apps.imaging.volume import Affine, Shape, spacing
from common.errors import InputError

ORIENTATION_TOLERANCE = 1e-3
"""Largest difference between direction cosines of slices of one series (0.06 degrees)."""
LEAST_SLICES = 2

_HEADER_TAGS = [
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "SOPClassUID",
    "Modality",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "SamplesPerPixel",
    "RescaleSlope",
    "RescaleIntercept",
    "NumberOfFrames",
    "InstanceNumber",
]
_DECODED_HERE = frozenset(
    [
        "1.2.840.10008.1.2",  # Implicit VR little endian
        "1.2.840.10008.1.2.1",  # Explicit VR little endian
        "1.2.840.10008.1.2.2",  # Explicit VR big endian
        "1.2.840.10008.1.2.5",  # RLE lossless
    ]
)
_DATASET_BYTES = 1 << 20
"""A parsed header and pydicom's buffers around one slice's pixels."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What is kept of one file."""

    path: Path
    instance: str
    """SOPInstanceUID."""
    position: tuple[float, float, float]
    """Centre of the first pixel in millimetres, DICOM's axes (left, posterior, superior)."""
    slope: float
    intercept: float
    """To the image's values; for MONOCHROME1, where the largest stored value is black, with the scale turned over."""
    inverted: bool
    """MONOCHROME1."""
    syntax: str


@dataclass(frozen=True, slots=True)
class _Row:
    """One header, with what decides which series it belongs to and whether the series is a volume."""

    slice: Slice
    series: str
    modality: str
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    rows: int
    columns: int
    dtype: str
    frames: int


@dataclass(frozen=True, slots=True)
class DicomVolume:
    """One series; build it with ``open_series``."""

    path: Path
    slices: tuple[Slice, ...]
    shape: Shape
    affine: Affine
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    stored_dtype: np.dtype[Any]
    bits: int
    modality: str

    @property
    def reader_bytes(self) -> int:
        """One file's bytes, its decoded pixels, and their float32 form where slices are scaled one by one."""
        x, y, _ = self.shape
        return _DATASET_BYTES + x * y * (2 * self.stored_dtype.itemsize + (8 if self.dtype.kind == "f" else 0))

    @contextmanager
    def open(self) -> Iterator["DicomReader"]:
        """Start reading at the first slice."""
        yield DicomReader(self)

    def identity(self) -> str:
        """Digest of the sorted SOPInstanceUIDs."""
        return hashlib.sha256("\n".join(sorted(s.instance for s in self.slices)).encode()).hexdigest()

    def describe(self) -> list[str]:
        """Lines for ``imaging inspect``."""
        from nibabel.orientations import aff2axcodes

        edges = "x".join(f"{size:.4g}" for size in spacing(self.affine))
        scaled = (
            "per slice" if self.dtype != self.stored_dtype else f"slope {self.slope:g}, intercept {self.intercept:g}"
        )
        return [
            f"DICOM       {self.modality}, {len(self.slices)} slices",
            f"grid        {'x'.join(map(str, self.shape))} voxels of {edges} mm, {''.join(aff2axcodes(self.affine))}",
            f"stored      {self.stored_dtype.name} ({self.bits} bits used), scale {scaled}",
        ]


class DicomReader:
    """Slices of a series, decoded one at a time in the order of their place."""

    def __init__(self, volume: DicomVolume) -> None:
        self._volume, self._next = volume, 0

    def read(self, out: npt.NDArray[Any]) -> None:
        """Fill ``out``, (k, y, x) of the volume's dtype, with the next k slices."""
        for plane in out:
            part = self._volume.slices[self._next]
            self._next += 1
            stored = _pixels(self._volume, part)
            if self._volume.dtype == stored.dtype:
                plane[...] = stored
            else:
                np.multiply(stored, np.float32(part.slope), out=plane, casting="unsafe")
                plane += np.float32(part.intercept)


def _pydicom() -> Any:
    """pydicom, without its warnings: they quote the values they complain about, which may identify a patient."""
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")
    return pydicom


def _pixels(volume: DicomVolume, part: Slice) -> npt.NDArray[Any]:
    pydicom = _pydicom()
    from pydicom.pixels import pixel_array

    x, y, _ = volume.shape
    try:
        dataset = pydicom.dcmread(part.path)
        array = pixel_array(dataset)
    except Exception as error:  # pydicom raises many types; what they mean here is the same
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{part.path}: pixels cannot be decoded ({reason})", public="DICOM pixels damaged") from None
    if array.shape != (y, x):
        raise InputError(f"{part.path}: pixels are not {y} rows of {x}", public="DICOM pixels damaged")
    return array.astype(volume.stored_dtype, copy=False)


def holds_dicom(path: Path) -> bool:
    """Whether a folder has a DICOM file directly in it."""
    return any(_is_dicom(entry) for entry in sorted(path.iterdir()))


def _is_dicom(path: Path) -> bool:
    """By the mark after the preamble; old files without one are taken by their name's ending."""
    if path.name.startswith(".") or not path.is_file() or path.name.upper() == "DICOMDIR":
        return False
    with path.open("rb") as stream:
        start = stream.read(132)
    return start[128:132] == b"DICM" or (path.suffix.lower() in (".dcm", ".ima") and len(start) == 132)


def open_series(path: Path, series: str | None = None) -> DicomVolume:
    """Read all headers of a folder and build the volume of one series.

    Parameters
    ----------
    path
        A folder with DICOM files directly in it.
    series
        Number (from 1, as listed) or SeriesInstanceUID, where there are several.

    Raises
    ------
    InputError
        No images, several series and no choice, or a series that is not one regular volume.
    """
    rows = [row for entry in sorted(path.iterdir()) if _is_dicom(entry) and (row := _read_row(entry)) is not None]
    if not rows:
        raise InputError(f"{path}: no DICOM images in it", public="no images in DICOM folder")
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.series, []).append(row)
    return _volume(path, _choose(path, groups, series))


def _choose(path: Path, groups: dict[str, list[_Row]], wanted: str | None) -> list[_Row]:
    if len(groups) == 1 and wanted is None:
        return next(iter(groups.values()))
    uids = list(groups)
    listed = "; ".join(f"{n}: {groups[uid][0].modality}, {len(groups[uid])} slices" for n, uid in enumerate(uids, 1))
    if wanted is None:
        raise InputError(f"{path}: {len(groups)} series ({listed}); --series N|UID picks one", public="several series")
    if wanted in groups:
        return groups[wanted]
    if wanted.isdigit() and 1 <= int(wanted) <= len(uids):
        return groups[uids[int(wanted) - 1]]
    raise InputError(f"{path}: no series {wanted!r}; there are {listed}", public="no such series")


def _read_row(path: Path) -> _Row | None:
    """One header as a small row; ``None`` for what is not an image."""
    pydicom = _pydicom()
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

    try:
        syntax = str(read_file_meta_info(path).get("TransferSyntaxUID", ImplicitVRLittleEndian))
        if syntax == DeflatedExplicitVRLittleEndian:  # pydicom would inflate it all, however large, to read the header
            raise InputError(f"{path}: deflated DICOM is not read", public="DICOM transfer syntax")
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_HEADER_TAGS), force=True)
        if "Rows" not in header or "SOPClassUID" not in header:
            return None
        slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
        signed, bits = int(header.get("PixelRepresentation", 0)), int(header.BitsAllocated)
        used = int(header.get("BitsStored", bits))
        inverted = str(header.get("PhotometricInterpretation", "")) == "MONOCHROME1"
        if inverted:
            lowest_plus_highest = -1 if signed else 2**used - 1
            slope, intercept = -slope, intercept + slope * lowest_plus_highest
        position = _floats(header, "ImagePositionPatient", 3)
        return _Row(
            Slice(
                path,
                str(header.get("SOPInstanceUID", path.name)),
                (position[0], position[1], position[2]) if position else (np.nan,) * 3,
                slope,
                intercept,
                inverted,
                syntax,
            ),
            str(header.get("SeriesInstanceUID", "")),
            str(header.get("Modality", "?")),
            _floats(header, "ImageOrientationPatient", 6),
            _floats(header, "PixelSpacing", 2),
            int(header.Rows),
            int(header.Columns),
            f"{'int' if signed else 'uint'}{bits}:{used}"
            + (":color" if int(header.get("SamplesPerPixel", 1)) != 1 else ""),
            int(header.get("NumberOfFrames", 1) or 1),
        )
    except InputError:
        raise
    except Exception as error:  # whatever pydicom makes of a damaged header
        raise InputError(
            f"{path}: not a readable DICOM file ({type(error).__name__})", public="DICOM header damaged"
        ) from None


def _floats(header: Any, name: str, count: int) -> tuple[float, ...] | None:
    values = header.get(name)
    return tuple(float(value) for value in values) if values is not None and len(values) == count else None


def _volume(path: Path, rows: Sequence[_Row]) -> DicomVolume:
    first = rows[0]
    _refuse_unless_plain(path, rows)
    orientation = np.array([row.orientation for row in rows]).mean(axis=0)
    positions = np.array([row.slice.position for row in rows])
    affine, order = stack(path, positions, orientation, first.pixel_spacing or (1.0, 1.0))
    slices = tuple(rows[index].slice for index in order)
    kind, stored = first.dtype.split(":")
    stored_dtype = np.dtype(kind)
    scales = {(part.slope, part.intercept) for part in slices}
    uniform = len(scales) == 1
    slope, intercept = scales.pop() if uniform else (1.0, 0.0)
    return DicomVolume(
        path=path,
        slices=slices,
        shape=(first.columns, first.rows, len(slices)),
        affine=affine,
        dtype=stored_dtype if uniform else np.dtype(np.float32),
        slope=slope,
        intercept=intercept,
        stored_dtype=stored_dtype,
        bits=int(stored),
        modality=first.modality,
    )


def _refuse_unless_plain(path: Path, rows: Sequence[_Row]) -> None:
    """Everything that must be so in each file, or the same in all."""
    first = rows[0]
    if first.frames > 1:
        raise InputError(f"{path}: multi-frame DICOM is not read by this version", public="multi-frame DICOM")
    if not first.dtype.split(":")[0].endswith(("8", "16", "32")):
        raise InputError(f"{path}: {first.dtype.split(':')[0]} pixels are not supported", public="DICOM pixel type")
    if "color" in first.dtype:
        raise InputError(f"{path}: colour images are not volumes", public="colour DICOM")
    for row in rows:
        if row.slice.syntax not in _DECODED_HERE:
            from pydicom.uid import UID

            name = UID(row.slice.syntax).name
            raise InputError(f"{path}: transfer syntax {name!r} cannot be decoded here", public="DICOM transfer syntax")
        if row.orientation is None or row.pixel_spacing is None or not np.isfinite(row.slice.position).all():
            raise InputError(
                f"{path}: slices without ImageOrientation, ImagePosition or PixelSpacing",
                public="DICOM geometry missing",
            )
        if (row.rows, row.columns, row.dtype) != (first.rows, first.columns, first.dtype):
            raise InputError(f"{path}: slices of different sizes or types in one series", public="mixed slices")
        if row.slice.inverted != first.slice.inverted:
            raise InputError(f"{path}: MONOCHROME1 and MONOCHROME2 in one series", public="mixed slices")
        same = np.allclose(row.orientation, first.orientation or (), atol=ORIENTATION_TOLERANCE, rtol=0)
        if not same or not np.allclose(row.pixel_spacing, first.pixel_spacing or (), rtol=1e-3):
            raise InputError(f"{path}: slices of different orientations in one series", public="mixed orientations")
    if len(rows) < LEAST_SLICES:
        raise InputError(f"{path}: one slice is not a volume", public="one slice only")
