"""Read plain and compressed files as streams of bytes in UTF-8, and refuse a file that expands without end.

The suffix says how a file is compressed (``.gz``, ``.bz2``, ``.zst``), its first bytes whether it is UTF-16.
"""

from __future__ import annotations

import codecs
import gzip
import io
from pathlib import Path
from typing import Any, NamedTuple

from apps.recsys.data.arrow_numpy import native
from common.bunzip import Bunzipped
from common.errors import BadInput

MOST_EXPANSION = 250
"""Largest ratio of unpacked to packed size that is read. Tables of interactions pack by factors of 3 to 30."""
LEAST_BYTES = 64 << 20
"""Number of bytes that may be unpacked of any file."""
MOST_WINDOW = 8 << 20
"""Largest window of a ``.zst`` file in bytes: what ``zstd`` writes up to its level 19."""
UNPACKING_BYTES = {"": 0, ".gz": 1 << 16, ".bz2": 4 << 20, ".zst": 1 << 19}
"""Memory that unpacking takes at most, by suffix (bzip2's manual); of ``.zst`` without the file's own window."""
TRANSCODING_BYTES = 1 << 20
"""Memory of a block of UTF-16 while it becomes UTF-8, several copies of 64 KiB."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ZSTD = b"\x28\xb5\x2f\xfd"


def packing(path: Path) -> str:
    """The suffix of a compressed file; empty for any other."""
    suffix = path.suffix.lower()
    return suffix if suffix in UNPACKING_BYTES else ""


def format_suffix(path: Path) -> str:
    """The suffix that names a file's format, without that of its compression, in lower case.

    Examples
    --------
    >>> format_suffix(Path("Clicks.JSONL.gz"))
    '.jsonl'
    """
    return Path(path.stem if packing(path) else path.name).suffix.lower()


def unpacking_bytes(path: Path) -> int:
    """Memory that reading a file of text takes besides the parser's, at most."""
    window = min(MOST_WINDOW, _window(path)) if packing(path) == ".zst" else 0
    return UNPACKING_BYTES[packing(path)] + window + TRANSCODING_BYTES * (not is_plain(path))


def is_plain(path: Path) -> bool:
    """True if the file is neither compressed nor in UTF-16, so that it can be parsed as it is."""
    if packing(path):
        return False
    with path.open("rb") as stream:
        return stream.read(2) not in _UTF16


class Unpacked(io.RawIOBase):
    """A binary file object over a plain or compressed file; UTF-16 is converted to UTF-8.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    BadInput
        The window of a ``.zst`` file is too large. While reading: the file expands to more than ``MOST_EXPANSION``
        times its size.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._stream = _opened(path)
        self._left = max(LEAST_BYTES, MOST_EXPANSION * path.stat().st_size) if packing(path) else None
        self._ahead = self._unpack(2)
        self._decoder: Any = None
        if self._ahead in _UTF16:
            self._decoder = codecs.getincrementaldecoder("utf-16")()
            self._ahead = self._decoder.decode(self._ahead).encode()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as one read does."""
        view = memoryview(buffer).cast("B")
        block, self._ahead = self._ahead, b""
        while not block:
            packed = self._unpack(max(1, len(view) // 2))
            block = packed if self._decoder is None else self._decoder.decode(packed, final=not packed).encode()
            if not packed:
                break
        view[: len(block)] = block[: len(view)]
        self._ahead = block[len(view) :]
        return min(len(block), len(view))

    def _unpack(self, size: int) -> bytes:
        block: bytes = self._stream.read(size)
        if self._left is not None:
            self._left -= len(block)
            if self._left < 0:
                raise BadInput(
                    f"{self._path}: expands to more than {MOST_EXPANSION} times its size; not a table of interactions",
                    public="file expands without end",
                )
        return block

    def readable(self) -> bool:
        """True: readers of Arrow ask for it."""
        return True

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._stream.close()
        super().close()


def _opened(path: Path) -> Any:
    """The unpacked bytes of a file."""
    suffix = packing(path)
    if suffix == ".gz":
        return gzip.GzipFile(path)
    if suffix == ".bz2":
        return Bunzipped(path.open("rb"))
    if suffix == ".zst":
        import pyarrow as pa

        if (window := _window(path)) > MOST_WINDOW:
            raise BadInput(
                f"{path}: its window is {window >> 20} MiB, at most {MOST_WINDOW >> 20} are read; pack it again without"
                " --long and --ultra",
                public="window too large",
            )
        return pa.CompressedInputStream(pa.OSFile(native(path)), "zstd")
    return path.open("rb")


def _window(path: Path) -> int:
    """Bytes of the window that unpacking a ``.zst`` file takes, by its first frame's header (RFC 8878, 3.1.1.1)."""
    with path.open("rb") as stream:
        head = stream.read(18)
    if head[:4] != _ZSTD or len(head) < 6:
        return 0
    if not head[4] & 32:
        base = 1 << (10 + (head[5] >> 3))
        return base + base // 8 * (head[5] & 7)
    # A single segment: its window is its content, whose size stands behind the dictionary's number.
    start, size = 5 + (0, 1, 2, 4)[head[4] & 3], (1, 2, 4, 8)[head[4] >> 6]
    return int.from_bytes(head[start : start + size], "little") + (256 if size == 2 else 0)


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a plain or compressed file as a stream of bytes in UTF-8."""
    return io.BufferedReader(Unpacked(path), 1 << 16)


def open_text(path: Path) -> io.TextIOWrapper:
    """Open a plain or compressed file as a stream of text, without its byte order mark."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="")


class FirstText(NamedTuple):
    """The beginning of a text file, and what reading the rest takes."""

    text: str
    suffix: str
    """Suffix of the name without that of a packed file, in lower case."""
    unpacking_bytes: int
    """As ``unpacking_bytes``."""


def first_text(path: Path, size: int) -> FirstText:
    """Read the first ``size`` characters of a text file.

    Raises
    ------
    OSError, EOFError, UnicodeDecodeError
        It cannot be read, or is no text.
    """
    with open_text(path) as stream:
        return FirstText(stream.read(size), format_suffix(path), unpacking_bytes(path))
