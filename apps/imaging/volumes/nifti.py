"""NIfTI-1 and -2, plain or gzipped: read and written plane by plane, never whole in memory."""

import gzip
import hashlib
import logging
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.geometry import axis_codes
from apps.imaging.volumes.nifti_grid import header_grid
from apps.imaging.volumes.volume import LARGEST_VALUE, Affine, Shape, spacing
from common.errors import BadInput
from common.files import atomic_file

SUFFIXES = (".nii.gz", ".nii")

_IDENTITY_BYTES = 1 << 20
_GZIP_LEVEL = 6
_GZIP_BYTES = 1 << 20
"""zlib and the stream's buffers while reading or writing (measured 0.3 to 0.6 MiB)."""
_PIECE_BYTES = 1 << 18
"""Bytes asked of a stream at once: gzip makes a copy of all that it unpacks for one request."""

CHANNEL = re.compile(r"_(\d{4})(?=\.nii(\.gz)?$)")
"""The end of nnU-Net's file names, with the number of the channel."""


def is_nifti(path: Path) -> bool:
    """Tell a NIfTI file by its name."""
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """Name without ``.nii`` or ``.nii.gz``."""
    name = path.name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


@dataclass(frozen=True, slots=True)
class NiftiVolume:
    """A three-dimensional NIfTI image; build it with ``open_nifti``."""

    path: Path
    shape: Shape
    affine: Affine
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    header: Any
    """nibabel's header, from which an output's geometry is copied; ``None`` where that was repaired."""
    offset: int
    """Bytes in front of the volume's voxels in the unzipped file."""
    number: int = 0
    """The volume's number, from 1, in a file of several; 0 in a file of one."""
    notes: tuple[str, ...] = ()
    """Peculiarities of the header, and repairs."""
    reader_bytes: int = _GZIP_BYTES

    @contextmanager
    def open(self) -> Iterator["NiftiReader"]:
        """Open a reader at the first plane."""
        opener: Any = gzip.open if self.path.name.lower().endswith(".gz") else open
        with opener(self.path, "rb") as stream:
            reader = NiftiReader(self, stream)
            reader.skip(self.offset)
            yield reader

    def identity(self) -> str:
        """SHA-256 of the file's size and its first and last MiB, and of what was chosen or repaired."""
        size = self.path.stat().st_size
        chosen = f" {self.number} {self.affine.tolist()}" if self.number or self.header is None else ""
        digest = hashlib.sha256(f"{size}{chosen}".encode())
        with self.path.open("rb") as stream:
            digest.update(stream.read(_IDENTITY_BYTES))
            stream.seek(max(0, size - _IDENTITY_BYTES))
            digest.update(stream.read(_IDENTITY_BYTES))
        return digest.hexdigest()

    def describe(self) -> list[str]:
        """Lines for ``imaging inspect``; free-text header fields may hold names and are left out."""
        edges = "x".join(f"{size:.4g}" for size in spacing(self.affine))
        axes = "".join(str(code) for code in axis_codes(self.affine))
        return [
            f"NIfTI       {'x'.join(map(str, self.shape))} voxels of {edges} mm, {axes}",
            f"stored      {self.dtype.name}, slope {self.slope:g}, intercept {self.intercept:g}",
            *(f"header      {note}" for note in self.notes),
        ]


class NiftiReader:
    """Planes of an open file, in order."""

    def __init__(self, volume: NiftiVolume, stream: IO[bytes]) -> None:
        self._path, self._stream, self._left = volume.path, stream, volume.shape[2]
        self._limit = LARGEST_VALUE / max(abs(volume.slope), 1.0) if volume.dtype.kind == "f" else None

    def skip(self, count: int) -> None:
        """Skip ``count`` bytes, the header."""
        while count:
            got = len(self._guarded(self._stream.read, min(count, 1 << 16)))
            if not got:
                raise _truncated(self._path)
            count -= got

    def read(self, out: npt.NDArray[Any]) -> None:
        """Fill ``out``, (k, y, x) of the file's dtype and in C order, with the next k planes.

        Raises
        ------
        BadInput
            If the file is damaged, ends before its last voxel, or has finite values beyond ``LARGEST_VALUE``.
        """
        view = out.reshape(-1).view(np.uint8).data
        filled = 0
        while filled < len(view):
            got = self._guarded(self._stream.readinto, view[filled : filled + _PIECE_BYTES])  # type: ignore[attr-defined]
            if not got:
                raise _truncated(self._path)
            filled += got
        if self._limit is not None:
            self._check_values(out, self._limit)
        self._left -= len(out)
        if not self._left:
            self._guarded(self._stream.read, 1 << 16)  # gzip compares its checksum only at the end

    def _check_values(self, out: npt.NDArray[Any], limit: float) -> None:
        """Refuse finite values that later sums and squares in float32 could not hold; others count as zero there."""
        if max(np.fmax.reduce(out, axis=None), -np.fmin.reduce(out, axis=None)) <= limit:
            return
        for plane in out:
            sizes = np.abs(plane[np.isfinite(plane)])
            if sizes.size and sizes.max() > limit:
                message = f"values of up to {sizes.max():.1e} are beyond {LARGEST_VALUE:.0e}; scale the image first"
                raise BadInput(f"{self._path}: {message}", public="NIfTI values")

    def _guarded(self, action: Any, argument: Any) -> Any:
        try:
            return action(argument)
        except EOFError:
            raise _truncated(self._path) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise BadInput(f"{self._path}: damaged gzip data ({error})", public="NIfTI damaged") from None


def _truncated(path: Path) -> BadInput:
    return BadInput(f"{path}: truncated: it ends before its last voxel", public="NIfTI truncated")


def open_nifti(path: Path, *, volume: int | None = None, repair: bool = False) -> NiftiVolume:
    """Read and check a header.

    Parameters
    ----------
    volume
        Number, from 1, of the volume in a file of several.
    repair
        True to repair a header that contradicts itself (``header_grid``) instead of refusing it.

    Raises
    ------
    BadInput
        A file that is missing, empty, not NIfTI, too short, or not three-dimensional unless ``volume`` says which part
        of it is meant; a data type that is not supported; a header that contradicts itself.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it logs what it mends in a header
    if not path.is_file():
        raise BadInput(f"{path}: no such file", public="no such file")
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: the file is empty", public="file empty")
    try:
        image: Any = nibabel.load(path)
        header = image.header
        # Trailing axes of length one are common and without meaning.
        sizes = [int(size) for size in header.get_data_shape()]
        # nibabel clears these two in the header and keeps them here.
        slope, intercept = image.dataobj.slope, image.dataobj.inter
        dtype, offset = header.get_data_dtype(), int(image.dataobj.offset)
    except (
        ImageFileError,
        HeaderDataError,
        EOFError,
        zlib.error,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        OverflowError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"{path}: not a readable NIfTI file ({reason})", public="NIfTI unreadable") from None
    sizes, count = _volumes(path, sizes)
    number = _chosen(path, sizes, count, volume)
    if dtype.kind not in "iuf":
        raise BadInput(f"{path}: voxels of type {dtype} are not supported", public="NIfTI voxel type")
    scaled = slope != 1 or intercept != 0
    if dtype.kind != "f" and scaled and not 2.0 ** (8 * dtype.itemsize) * abs(slope) + abs(intercept) <= LARGEST_VALUE:
        message = f"scl_slope {slope:g} and scl_inter {intercept:g} take its values beyond {LARGEST_VALUE:.0e}"
        raise BadInput(f"{path}: {message}", public="NIfTI values")
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 0 or None in axis_codes(affine):
        raise BadInput(f"{path}: its affine has no inverse", public="NIfTI geometry")
    grid = header_grid(path, header, affine, repair=repair)
    if abs(np.linalg.det(grid.affine[:3, :3])) < 1e-9:
        raise BadInput(f"{path}: its affine has no inverse", public="NIfTI geometry")
    voxels = int(np.prod(sizes, dtype=np.int64)) * dtype.itemsize
    _check_length(path, offset + voxels * count)
    return NiftiVolume(
        path=path,
        shape=(sizes[0], sizes[1], sizes[2]),
        affine=grid.affine,
        dtype=dtype,
        slope=float(slope),
        intercept=float(intercept),
        header=None if grid.repaired else header,
        offset=offset + voxels * max(0, number - 1),
        number=number,
        notes=grid.notes,
    )


def _volumes(path: Path, sizes: list[int]) -> tuple[list[int], int]:
    """The three axes of space, and the number of volumes along the others, of which those of length one are common."""
    space, count = sizes[:3], int(np.prod(sizes[3:], dtype=np.int64))
    if len(space) != 3 or min(sizes) < 1:
        shape = "x".join(map(str, sizes))
        raise BadInput(f"{path}: not a three-dimensional image (its shape is {shape})", public="NIfTI not 3D")
    return space, count


def _chosen(path: Path, sizes: list[int], count: int, volume: int | None) -> int:
    """The number of the volume to read, from 1; 0 in a file of one."""
    if count == 1 and volume in (None, 1):
        return 0
    shape = "x".join(map(str, sizes))
    if volume is None:
        message = f"not a three-dimensional image but {count} volumes of {shape}; --volume K (1 to {count}) picks one"
        raise BadInput(f"{path}: {message}", public="NIfTI not 3D")
    if not 1 <= volume <= count:
        raise BadInput(f"{path}: no volume {volume}; there are {count} of {shape}", public="no such volume")
    return volume


def _check_length(path: Path, expected: int) -> None:
    """Refuse a file that is too short; a gzipped one may be up to 1032 times longer than its size."""
    size = path.stat().st_size
    if size * (1032 if path.name.lower().endswith(".gz") else 1) < expected:
        raise _truncated(path)


def label_header(affine: Affine, dtype: np.dtype[Any], shape: Shape, like: Any = None) -> Any:
    """Make a NIfTI header for labels on a grid.

    Parameters
    ----------
    like
        nibabel's header of the image, whose geometry with its codes is copied; without one, ``affine`` is written.
    """
    import nibabel

    second = max(shape) > 32767 or (like is not None and like["sizeof_hdr"] == 540)
    kind: Any = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    header = kind()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_xyzt_units("mm")
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4
    if like is None:
        header.set_qform(affine, code="scanner")
        header.set_sform(affine, code="scanner")
        return header
    for field in ("pixdim", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        header[field] = like[field]
    header["pixdim"][4:] = 1
    for field in ("sform_code", "srow_x", "srow_y", "srow_z"):
        header[field] = like[field]
    header["xyzt_units"] = like["xyzt_units"]
    return header


class LabelWriter:
    """Writer of a NIfTI file's label planes, in order; made by ``write_labels``."""

    def __init__(self, stream: IO[bytes], dtype: np.dtype[Any]) -> None:
        self._stream, self._dtype = stream, dtype

    def write(self, slab: npt.NDArray[Any]) -> None:
        """Append finished planes, (x, y, k)."""
        for plane in range(slab.shape[2]):
            self._stream.write(np.ascontiguousarray(slab[..., plane].T, self._dtype).data)


@contextmanager
def write_labels(path: Path, header: Any) -> Iterator[LabelWriter]:
    """Write a label file, gzipped if its name ends in ``.gz``; it appears only when the block ends without an error.

    Parameters
    ----------
    header
        From ``label_header``.
    """
    start = bytes(header.binaryblock) + bytes(4)  # four zeros: no extensions
    with atomic_file(path) as draft, draft.open("wb") as raw:
        if path.name.endswith(".gz"):
            # No name and no time inside: the same labels make the same bytes.
            stream: Any = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=_GZIP_LEVEL)
        else:
            stream = raw
        with stream:
            stream.write(start)
            yield LabelWriter(stream, np.dtype(header.get_data_dtype()))
