"""NIfTI-1 and -2, plain, compressed or in two files, and MGH: headers read by nibabel. Label files are NIfTI."""

import gzip
import logging
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.geometry import axis_codes
from apps.imaging.volumes.nifti_grid import HeaderGrid, header_grid
from apps.imaging.volumes.stored import FileVolume, check_length, guarded, opened, packing_of, truncated
from apps.imaging.volumes.volume import LARGEST_VALUE, Affine
from common.errors import BadInput
from common.files import atomic_file

SUFFIXES = (".nii.gz", ".nii", ".nii.zst", ".hdr", ".img", ".mgz", ".mgh")
_GZIP_LEVEL = 6
MOST_HEADER = 1 << 20
"""Most bytes of a file in which nibabel looks for a header."""


def is_nifti(path: Path) -> bool:
    """Tell a NIfTI file by its name."""
    return path.name.lower().endswith((".nii.gz", ".nii"))


def open_nifti(path: Path, *, volume: int | None = None, repair: bool = False) -> FileVolume:
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
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it logs what it mends in a header
    if not path.is_file():
        raise BadInput(f"{path}: no such file", public="no such file")
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: the file is empty", public="file empty")
    try:
        image: Any = _loaded(path)
        header = image.header
        # Trailing axes of length one are common and without meaning.
        sizes = [int(size) for size in header.get_data_shape()]
        # nibabel clears these two in the header and keeps them here.
        slope, intercept = image.dataobj.slope, image.dataobj.inter
        dtype, offset = header.get_data_dtype(), int(image.dataobj.offset)
    except (*_UNREADABLE, ImageFileError, HeaderDataError, WrapStructError) as error:
        raise _unreadable(path, error) from None
    sizes, count = _volumes(path, sizes)
    number = _chosen(path, sizes, count, volume)
    if dtype.kind not in "iuf":
        raise BadInput(f"{path}: voxels of type {dtype} are not supported", public="NIfTI voxel type")
    scaled = slope != 1 or intercept != 0
    if dtype.kind != "f" and scaled and not 2.0 ** (8 * dtype.itemsize) * abs(slope) + abs(intercept) <= LARGEST_VALUE:
        message = f"scl_slope {slope:g} and scl_inter {intercept:g} take its values beyond {LARGEST_VALUE:.0e}"
        raise BadInput(f"{path}: {message}", public="NIfTI values")
    affine = np.asarray(image.affine, np.float64)
    data, kind = Path(image.file_map["image"].filename or path), _kind(image)
    if data != path and not data.is_file():
        raise BadInput(f"{path}: its voxels are in {data.name}, which is not there", public="file of voxels missing")
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 0 or None in axis_codes(affine):
        raise BadInput(f"{path}: its affine has no inverse", public="NIfTI geometry")
    if kind == "NIfTI":
        grid = header_grid(path, header, affine, repair=repair)
    else:
        grid = HeaderGrid(affine, kind == "Analyze", (_ANALYZE,) if kind == "Analyze" else ())
    if kind == "Analyze" and not repair:
        raise BadInput(f"{path}: Analyze does not say which side is left; --repair header {_ANALYZE}", public="Analyze")
    if abs(np.linalg.det(grid.affine[:3, :3])) < 1e-9:
        raise BadInput(f"{path}: its affine has no inverse", public="NIfTI geometry")
    voxels = int(np.prod(sizes, dtype=np.int64)) * dtype.itemsize
    check_length(data, offset + voxels * count, kind=kind)
    return FileVolume(
        path=path,
        kind=kind,
        data=data,
        packing=packing_of(data),
        shape=(sizes[0], sizes[1], sizes[2]),
        affine=grid.affine,
        dtype=dtype,
        slope=float(slope),
        intercept=float(intercept),
        header=None if grid.repaired or kind != "NIfTI" else header,
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


def _loaded(path: Path) -> Any:
    """nibabel's image of a file, of which only the header has been read."""
    import nibabel

    if not path.name.lower().endswith(".zst"):
        return nibabel.load(path)
    with opened(path, "zst") as stream:
        start = guarded(stream.read, MOST_HEADER, path, "NIfTI", "zst")
    if len(start) < SHORTEST_HEADER:
        raise EOFError
    kind = nibabel.Nifti2Image if start[:4] in _SECOND else nibabel.Nifti1Image
    image: Any = kind.from_stream(BytesIO(start))
    image.file_map["image"].filename = str(path)
    return image


SHORTEST_HEADER = 348
"""Bytes of a NIfTI-1 header."""
_SECOND = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
"""First bytes of NIfTI-2."""
_ANALYZE = "takes x to the right as left, as SPM and nibabel do"


_UNREADABLE = (EOFError, zlib.error, OSError, ValueError, KeyError, AttributeError, OverflowError, TypeError)
"""What nibabel and its libraries raise for a damaged header, besides nibabel's own."""


def _unreadable(path: Path, error: Exception) -> BadInput:
    """The error for a header that cannot be read, which names the file once and the format that its name says."""
    if isinstance(error, BadInput):
        return error
    kind = "MGH" if path.suffix.lower() in (".mgz", ".mgh") else "NIfTI"
    if isinstance(error, EOFError):
        return truncated(path, kind)
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    reason = re.sub(rf'(File )?"?{re.escape(str(path))}"?', "it", reason)
    return BadInput(f"{path}: not a readable {kind} file ({reason})", public=f"{kind} unreadable")


def _kind(image: Any) -> str:
    """Format of nibabel's image."""
    if "mgh" in type(image).__module__:
        return "MGH"
    return "NIfTI" if "magic" in image.header else "Analyze"


def label_header(affine: Affine, dtype: np.dtype[Any], shape: Sequence[int], like: Any = None) -> Any:
    """Make a NIfTI header for labels on a grid.

    Parameters
    ----------
    shape
        Voxels along x, y, z; then the number of volumes, if there are several.
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
def write_labels(path: Path, header: Any, *, comment: str = "", level: int = _GZIP_LEVEL) -> Iterator[LabelWriter]:
    """Write a label file, gzipped if its name ends in ``.gz``; it appears only when the block ends without an error.

    Parameters
    ----------
    header
        From ``label_header``; its offset of the voxels becomes right.
    comment
        Text of a header extension.
    level
        Of the compression.
    """
    extension = _extension(comment)
    header["vox_offset"] = int(header["sizeof_hdr"]) + len(extension)
    start = bytes(header.binaryblock) + extension
    with atomic_file(path) as draft, draft.open("wb") as raw:
        if path.name.endswith(".gz"):
            # No name and no time inside: the same labels make the same bytes.
            stream: Any = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=level)
        else:
            stream = raw
        with stream:
            stream.write(start)
            yield LabelWriter(stream, np.dtype(header.get_data_dtype()))


def _extension(comment: str) -> bytes:
    """Bytes between a NIfTI header and its voxels: four zeros, or a text of the kind "comment" in multiples of 16."""
    if not comment:
        return bytes(4)
    text = comment.encode()
    size = -(-(len(text) + 8) // 16) * 16
    return b"\x01\x00\x00\x00" + struct.pack("<ii", size, _COMMENT) + text.ljust(size - 8, b"\x00")


_COMMENT = 6
"""NIfTI's code of a comment."""
