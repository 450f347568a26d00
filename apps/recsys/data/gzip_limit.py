"""Read plain and gzip files as streams of bytes, and refuse a gzip file that expands without end."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from common.errors import BadInput

MOST_EXPANSION = 250
"""Largest ratio of unpacked to packed size that is read. Tables of interactions pack by factors of 3 to 30."""
LEAST_BYTES = 64 << 20
"""Number of bytes that may be unpacked of any file."""


class Unpacked:
    """A binary file object over a plain or gzip file.

    Parameters
    ----------
    path
        The file.
    gzipped
        True if it is a gzip file.

    Raises
    ------
    BadInput
        From ``read``: the file expands to more than ``MOST_EXPANSION`` times its size.
    """

    closed = False

    def __init__(self, path: Path, *, gzipped: bool) -> None:
        self._path = path
        self._stream: Any = gzip.GzipFile(path) if gzipped else path.open("rb")
        self._left = max(LEAST_BYTES, MOST_EXPANSION * path.stat().st_size) if gzipped else None

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes; none at the end of the file."""
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
        self.closed = True
        self._stream.close()

    def __enter__(self) -> Unpacked:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
