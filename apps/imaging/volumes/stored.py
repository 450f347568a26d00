"""Images whose planes lie one after the other in a file, plain or compressed: read in order, never whole in memory."""

import gzip
import hashlib
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
from apps.imaging.volumes.volume import LARGEST_VALUE, Affine, Shape, spacing
from common.bunzip import Bunzipped
from common.errors import BadInput, UsageError

SUFFIXES = (
    *(".nii.gz", ".nii.zst", ".nii", ".hdr", ".img", ".mgz", ".mgh"),
    *(".nrrd", ".nhdr", ".mha", ".mhd"),
)
"""Endings of the images that are read."""
CHANNEL = re.compile(r"_(\d{4})(?=\.(nii(\.gz|\.zst)?|nrrd|nhdr|mha|mhd|mgz|mgh|hdr|img)$)")
"""The end of nnU-Net's file names, with the number of the channel."""

_IDENTITY_BYTES = 1 << 20
_PIECE_BYTES = 1 << 18
"""Bytes asked of a stream at once: gzip makes a copy of all that it unpacks for one request."""
_WINDOW = 1 << 23
"""Largest window of a ``.zst`` file in bytes: what ``zstd`` writes up to its level 19."""
UNPACKING_BYTES = {"": 1 << 20, "gz": 1 << 20, "zlib": 1 << 20, "bz2": 5 << 20, "zst": (1 << 20) + _WINDOW}
"""Bytes of an open file by its compression: zlib and the stream's buffers (measured 0.3 to 0.6 MiB), bzip2's manual,
and the window of Zstandard."""
EXPANSION = {"": 1, "gz": 1032, "zlib": 1032, "bz2": 50_000, "zst": 50_000}
"""Most times that a file of a compression expands; the last two have no bound, and an image of zeros has 13,000."""


def is_image(path: Path) -> bool:
    """Tell an image by its name; of a pair of files only the header."""
    return path.name.lower().endswith(SUFFIXES) and path.suffix.lower() != ".img"


def stem(path: Path) -> str:
    """Name without the ending of an image."""
    name = path.name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def packing_of(path: Path) -> str:
    """Compression of a file, by its name."""
    ending = path.name.lower().rpartition(".")[2]
    return {"gz": "gz", "mgz": "gz", "zst": "zst", "bz2": "bz2"}.get(ending, "")


@dataclass(frozen=True, slots=True)
class FileVolume:
    """A three-dimensional image in a file."""

    path: Path
    """File of the header."""
    shape: Shape
    affine: Affine
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    header: Any
    """nibabel's header of NIfTI, from which an output's geometry is copied; ``None`` where that was repaired, and of
    other formats."""
    offset: int
    """Bytes in front of the volume's voxels in the uncompressed data."""
    number: int = 0
    """The volume's number, from 1, in a file of several; 0 in a file of one."""
    notes: tuple[str, ...] = ()
    """Peculiarities of the header, and repairs."""
    kind: str = "NIfTI"
    """Format, for messages."""
    data: Path | None = None
    """File of the voxels, if it is another one."""
    packing: str = ""
    """Compression of the voxels: ``gz``, ``zlib``, ``bz2``, ``zst`` or none."""
    plain: int = 0
    """Bytes in front of the compressed data."""

    @property
    def reader_bytes(self) -> int:
        """Bytes of an open reader, without the planes that it fills."""
        return UNPACKING_BYTES[self.packing]

    @contextmanager
    def open(self) -> Iterator["FileReader"]:
        """Open a reader at the first plane."""
        with opened(self.data or self.path, self.packing, self.plain) as stream:
            reader = FileReader(self, stream)
            reader.skip(self.offset)
            yield reader

    def identity(self) -> str:
        """SHA-256 of the file's size and its first and last MiB, and of what was chosen or repaired."""
        other = f" {self.affine.tolist()} {self.dtype} {self.shape}" if self.kind != "NIfTI" else ""
        chosen = f" {self.number} {self.affine.tolist()}" if self.number or self.header is None else ""
        data = self.data or self.path
        size = data.stat().st_size
        digest = hashlib.sha256(f"{size}{chosen}{other}".encode())
        with data.open("rb") as stream:
            digest.update(stream.read(_IDENTITY_BYTES))
            stream.seek(max(0, size - _IDENTITY_BYTES))
            digest.update(stream.read(_IDENTITY_BYTES))
        return digest.hexdigest()

    def describe(self) -> list[str]:
        """Lines for ``imaging inspect``; free-text header fields may hold names and are left out."""
        edges = "x".join(f"{size:.4g}" for size in spacing(self.affine))
        axes = "".join(str(code) for code in axis_codes(self.affine))
        return [
            f"{self.kind:<11} {'x'.join(map(str, self.shape))} voxels of {edges} mm, {axes}",
            f"stored      {self.dtype.name}, slope {self.slope:g}, intercept {self.intercept:g}",
            *(f"header      {note}" for note in self.notes),
        ]


class _Inflated:
    """What ``zlib.compress`` packed, read in pieces, and what follows it; gzip's files have another header."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._inflater = raw, zlib.decompressobj()

    def readinto(self, view: memoryview) -> int:
        piece = self.read(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def read(self, count: int) -> bytes:
        while not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._raw.read(1 << 16)
            piece = self._inflater.decompress(packed, count)
            if piece:
                return piece
            if not packed:
                raise EOFError
        return self._inflater.unused_data[:count] or self._raw.read(count)


@contextmanager
def opened(path: Path, packing: str, plain: int = 0) -> Iterator[Any]:
    """Open the uncompressed content of a file.

    Parameters
    ----------
    packing
        As in ``FileVolume``.
    plain
        Bytes in front of the compressed data.
    """
    with path.open("rb") as raw:
        raw.seek(plain)
        if packing == "gz":
            with gzip.GzipFile(fileobj=raw) as stream:
                yield stream
        elif packing == "bz2":
            yield Bunzipped(raw)
        elif packing == "zlib":
            yield _Inflated(raw)
        elif packing == "zst":
            yield _zstandard().ZstdDecompressor(max_window_size=_WINDOW).stream_reader(raw, read_size=1 << 16)
        else:
            yield raw


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise UsageError(".nii.zst needs the extra 'zst' (zstandard)") from None
    return zstandard


class FileReader:
    """Planes of an open file, in order."""

    def __init__(self, volume: FileVolume, stream: Any) -> None:
        self._path, self._stream, self._left = volume.path, stream, volume.shape[2]
        self._kind, self._packing, self._several = volume.kind, volume.packing, bool(volume.number)
        self._limit = LARGEST_VALUE / max(abs(volume.slope), 1.0) if volume.dtype.kind == "f" else None

    def skip(self, count: int) -> None:
        """Skip ``count`` bytes, the header."""
        while count:
            got = len(self._guarded(self._stream.read, min(count, 1 << 16)))
            if not got:
                raise truncated(self._path, self._kind)
            count -= got

    def read(self, out: npt.NDArray[Any]) -> None:
        """Fill ``out``, (k, y, x) of the file's dtype and in C order, with the next k planes.

        Raises
        ------
        BadInput
            If the file is damaged, ends before its last voxel, expands to more than its header says, or has finite
            values beyond ``LARGEST_VALUE``.
        """
        view = out.reshape(-1).view(np.uint8).data
        filled = 0
        while filled < len(view):
            got = self._guarded(self._stream.readinto, view[filled : filled + _PIECE_BYTES])
            if not got:
                raise truncated(self._path, self._kind)
            filled += got
        if self._limit is not None:
            self._check_values(out, self._limit)
        self._left -= len(out)
        if not self._left:
            more = self._guarded(self._stream.read, 1 << 16)  # gzip compares its checksum only at the end
            if more and self._packing and self._kind in ("NRRD", "MetaImage") and not self._several:
                message = "its compressed data goes on after the last voxel that its header has"
                raise BadInput(f"{self._path}: {message}", public=f"{self._kind} too long")

    def _check_values(self, out: npt.NDArray[Any], limit: float) -> None:
        """Refuse finite values that later sums and squares in float32 could not hold; others count as zero there."""
        if max(np.fmax.reduce(out, axis=None), -np.fmin.reduce(out, axis=None)) <= limit:
            return
        for plane in out:
            sizes = np.abs(plane[np.isfinite(plane)])
            if sizes.size and sizes.max() > limit:
                message = f"values of up to {sizes.max():.1e} are beyond {LARGEST_VALUE:.0e}; scale the image first"
                raise BadInput(f"{self._path}: {message}", public=f"{self._kind} values")

    def _guarded(self, action: Any, argument: Any) -> Any:
        return guarded(action, argument, self._path, self._kind, self._packing)


def guarded(action: Any, argument: Any, path: Path, kind: str, packing: str) -> Any:
    """Read from a stream of ``opened``.

    Raises
    ------
    BadInput
        If what is compressed is damaged or cut off.
    """
    try:
        return action(argument)
    except EOFError:
        raise truncated(path, kind) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{path}: damaged gzip data ({error})", public=f"{kind} damaged") from None
    except (OSError, ValueError) as error:
        if packing not in ("bz2",):
            raise
        raise BadInput(f"{path}: damaged data ({error})", public=f"{kind} damaged") from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise BadInput(f"{path}: damaged Zstandard data ({error})", public=f"{kind} damaged") from None


def truncated(path: Path, kind: str) -> BadInput:
    """The error for a file that is too short."""
    return BadInput(f"{path}: truncated: it ends before its last voxel", public=f"{kind} truncated")


def check_length(path: Path, expected: int, packing: str | None = None, kind: str = "NIfTI") -> None:
    """Refuse a file that is too short for so many uncompressed bytes, however well it is compressed."""
    if path.stat().st_size * EXPANSION[packing_of(path) if packing is None else packing] < expected:
        raise truncated(path, kind)
