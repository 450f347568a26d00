"""Read bzip2 files strictly: Python's own reader ignores whatever follows the data without a word."""

import bz2
from typing import IO

_MAGIC = b"BZh"
"""First bytes of a stream."""
_PIECE = 1 << 16
"""Packed bytes that are read at once."""


class Bunzipped:
    """The unpacked bytes of a file of one bzip2 stream, or of several that follow each other.

    Parameters
    ----------
    raw
        The packed file, at its first byte.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._stream = raw, bz2.BZ2Decompressor()

    def readinto(self, view: memoryview) -> int:
        """Fill a buffer as far as one read does."""
        piece = self.read(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def read(self, count: int) -> bytes:
        """Return at most ``count`` bytes, none at the end.

        Raises
        ------
        EOFError
            A stream that is cut off.
        OSError
            Damaged data, or bytes after a stream that are no further one.
        """
        while True:
            packed = b""
            if self._stream.eof:
                packed = self._stream.unused_data or self._raw.read(_PIECE)
                if not packed:
                    return b""
                if not packed.startswith(_MAGIC[: len(packed)]):
                    raise OSError("bytes after the end of its bzip2 data")
                self._stream = bz2.BZ2Decompressor()
            elif self._stream.needs_input:
                packed = self._raw.read(_PIECE)
                if not packed:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            piece = self._stream.decompress(packed, count)
            if piece:
                return piece

    def close(self) -> None:
        """Close the packed file."""
        self._raw.close()
