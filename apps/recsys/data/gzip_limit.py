"""Text files as streams of bytes, unpacked where they are gzip; a file that never ends is refused, not followed."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from common.errors import BadInput

MOST_EXPANSION = 250
"""A table of interactions packs 3 to 30 times smaller; what packs better than this many times is not one."""
LEAST_BYTES = 64 << 20
"""So much may be unpacked of any file."""


class Unpacked:
    """A binary file object over a plain or gzip file, for readers that take one.

    Raises
    ------
    BadInput
        From ``read``, when a gzip file expands beyond all measure.
    """

    closed = False

    def __init__(self, path: Path, *, gzipped: bool) -> None:
        self._path = path
        self._stream: Any = gzip.GzipFile(path) if gzipped else path.open("rb")
        self._left = max(LEAST_BYTES, MOST_EXPANSION * path.stat().st_size) if gzipped else None

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; none at the end."""
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
        """It is."""
        return True

    def close(self) -> None:
        """Close the file."""
        self.closed = True
        self._stream.close()

    def __enter__(self) -> Unpacked:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
