"""Sort more pairs than fit into memory: distribute them over files by ranges of rows, and sort each file by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_BUCKETS = 256
"""Largest number of buckets, each of which is a file; more data makes them larger."""


class Buckets:
    """Files of records, each for a range of consecutive rows.

    Parameters
    ----------
    directory
        Folder of the files. Each is removed once it has been read.
    ends
        Running sum of the rows' lengths, shape (rows,).
    fields
        Names and NumPy types of a record's fields: row and column, by which records are ordered, then others.
    size
        Approximate number of records per bucket; a bucket holds whole rows.
    """

    def __init__(self, directory: Path, ends: NDArray[np.int64], fields: Mapping[str, str], *, size: int) -> None:
        import numpy as np

        self._directory = directory
        self._kind = np.dtype(list(fields.items()))
        self._row, self._column, *_ = fields
        size = max(size, -(-int(ends[-1]) // MOST_BUCKETS))
        cuts = np.searchsorted(ends, np.arange(size, int(ends[-1]), size), side="left") + 1
        self._bounds = np.unique(np.concatenate([[0], cuts, [len(ends)]]))
        self.largest = int(np.diff(np.concatenate([[0], ends])[self._bounds]).max())
        """Number of records in the largest bucket."""

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Append records, given as columns of equal length, to their buckets."""
        import numpy as np

        records = np.empty(len(columns[self._row]), self._kind)
        bucket = (np.searchsorted(self._bounds, columns[self._row], side="right") - 1).astype(np.uint16)
        # A stable sort of 16-bit numbers is a radix sort: one pass for any number of buckets.
        order = np.argsort(bucket, kind="stable")
        for name in columns:
            records[name] = columns[name][order]
        stops = np.cumsum(np.bincount(bucket, minlength=len(self._bounds) - 1))
        start = 0
        for number, stop in enumerate(stops):
            if stop > start:
                with self._path(number).open("ab") as stream:
                    records[start:stop].tofile(stream)
            start = stop

    def sorted(self, *, stable: bool = False) -> Iterator[NDArray[Any]]:
        """Yield the records of each bucket, ordered by row and column, bucket by bucket. Removes the files.

        With ``stable`` records of equal row and column stay in the order in which they were added.
        """
        import numpy as np

        for number in range(len(self._bounds) - 1):
            path = self._path(number)
            records = np.fromfile(path, self._kind) if path.exists() else np.empty(0, self._kind)
            path.unlink(missing_ok=True)
            # One key made of row and column: NumPy sorts it with vector instructions, three times as fast as lexsort.
            key = records[self._row].astype(np.int64)
            key <<= 32
            key |= records[self._column]
            order = np.argsort(key, kind="stable" if stable else None)
            del key
            records = records[order]
            del order
            yield records
            del records

    def _path(self, number: int) -> Path:
        return self._directory / f"bucket.{number}"
