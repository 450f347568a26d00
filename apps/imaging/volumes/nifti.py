"""NIfTI-1 and -2, plain or gzipped: read and written plane by plane, never whole in memory."""

import gzip
import hashlib
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.geometry import axis_codes
from apps.imaging.volumes.volume import Affine, Shape, spacing
from common.errors import BadInput
from common.files import atomic_file

SUFFIXES = (".nii.gz", ".nii")

_IDENTITY_BYTES = 1 << 20
_GZIP_LEVEL = 6
_GZIP_BYTES = 1 << 20
"""zlib and the stream's buffers while reading or writing (measured 0.3 to 0.6 MiB)."""
_PIECE_BYTES = 1 << 18
"""Bytes asked of a stream at once: gzip makes a copy of all that it unpacks for one request."""


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
    """nibabel's header, from which an output's geometry is copied."""
    offset: int
    """Bytes in front of the voxels in the unzipped file."""
    reader_bytes: int = _GZIP_BYTES

    @contextmanager
    def open(self) -> Iterator["NiftiReader"]:
        """Open a reader at the first plane."""
        opener: Any = gzip.open if self.path.name.lower().endswith(".gz") else open
        with opener(self.path, "rb") as stream:
            reader = NiftiReader(self.path, stream, self.shape[2])
            reader.skip(self.offset)
            yield reader

    def identity(self) -> str:
        """SHA-256 of the file's size and its first and last MiB."""
        size = self.path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
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
        ]


class NiftiReader:
    """Planes of an open file, in order."""

    def __init__(self, path: Path, stream: IO[bytes], planes: int) -> None:
        self._path, self._stream, self._left = path, stream, planes

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
            If the file is damaged, or ends before its last voxel.
        """
        view = out.reshape(-1).view(np.uint8).data
        filled = 0
        while filled < len(view):
            got = self._guarded(self._stream.readinto, view[filled : filled + _PIECE_BYTES])  # type: ignore[attr-defined]
            if not got:
                raise _truncated(self._path)
            filled += got
        self._left -= len(out)
        if not self._left:
            self._guarded(self._stream.read, 1 << 16)  # gzip compares its checksum only at the end

    def _guarded(self, action: Any, argument: Any) -> Any:
        try:
            return action(argument)
        except EOFError:
            raise _truncated(self._path) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise BadInput(f"{self._path}: damaged gzip data ({error})", public="NIfTI damaged") from None


def _truncated(path: Path) -> BadInput:
    return BadInput(f"{path}: truncated: it ends before its last voxel", public="NIfTI truncated")


def open_nifti(path: Path) -> NiftiVolume:
    """Read and check a header.

    Raises
    ------
    BadInput
        A file that is missing, empty, not NIfTI, not three-dimensional or too short, or a data type that is not
        supported.
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
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3 or min(sizes) < 1:
        shape = "x".join(map(str, sizes))
        raise BadInput(f"{path}: not a three-dimensional image (its shape is {shape})", public="NIfTI not 3D")
    if dtype.kind not in "iuf":
        raise BadInput(f"{path}: voxels of type {dtype} are not supported", public="NIfTI voxel type")
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9 or None in axis_codes(affine):
        raise BadInput(f"{path}: its affine has no inverse", public="NIfTI geometry")
    _check_length(path, offset + int(np.prod(sizes, dtype=np.int64)) * dtype.itemsize)
    return NiftiVolume(
        path=path,
        shape=(sizes[0], sizes[1], sizes[2]),
        affine=affine,
        dtype=dtype,
        slope=float(slope),
        intercept=float(intercept),
        header=header,
        offset=offset,
    )


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
