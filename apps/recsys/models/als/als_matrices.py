"""The training interactions as two matrices, by user and by item: both in memory, or both on disk.

Alternating least squares needs a few rows of one matrix at a time, and of the other side only the factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from apps.recsys.data import external_sort
from apps.recsys.data.csr_store import History, NpyWriter, ranges
from apps.recsys.data.splits import Kept
from apps.recsys.models.als.confidence import confidence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Block = tuple[int, int, Any]
    """First row, the row after the last, and the confidences of these rows as a SciPy CSR matrix."""

MEMORY_BLOCK = 1 << 22
"""Interactions per block in memory: the solver copies the confidences of a block."""
SORTED_SHARE = 4
"""Ratio of a block on disk to the pairs that are sorted at a time to write it."""
PAIR = {"row": "<i4", "column": "<i4", "value": "<f4"}
"""Fields of a pair while it is sorted."""


class Side(Protocol):
    """A matrix of confidences, read in blocks of rows."""

    rows: int
    """Number of rows."""

    def blocks(self, after: int = 0, until: int | None = None) -> Iterator[Block]:
        """Yield the rows from ``after`` on, in order, to ``until`` or the last."""
        ...


@dataclass(frozen=True, slots=True)
class Sides:
    """The confidences as two matrices."""

    users: Side
    """By user: shape (users, items)."""
    items: Side
    """By item: shape (items, users)."""


class InMemory:
    """A matrix in memory; blocks are views of it.

    Parameters
    ----------
    matrix
        A SciPy CSR matrix.
    block
        Interactions per block.
    """

    def __init__(self, matrix: Any, block: int = MEMORY_BLOCK) -> None:
        self._matrix, self._block = matrix, block
        self.rows: int = matrix.shape[0]

    def blocks(self, after: int = 0, until: int | None = None) -> Iterator[Block]:
        """Yield the rows from ``after`` on, in order, to ``until`` or the last."""
        matrix = self._matrix
        for start, stop in ranges(matrix.indptr[: _after_last(until)], self._block, after):
            first, last = matrix.indptr[start], matrix.indptr[stop]
            indptr = (matrix.indptr[start : stop + 1] - first).astype(matrix.indices.dtype, copy=False)
            yield start, stop, _csr(matrix.data[first:last], matrix.indices[first:last], indptr, matrix.shape[1])


class OnDisk:
    """A matrix on disk, of which one block at a time is in memory.

    Parameters
    ----------
    directory, name
        As ``csr_store.History``.
    columns
        Number of columns.
    block
        Interactions per block.
    """

    def __init__(self, directory: Path, name: str, columns: int, block: int) -> None:
        self._history, self._columns, self._block = History(directory, name), columns, block
        self.rows = self._history.rows

    def blocks(self, after: int = 0, until: int | None = None) -> Iterator[Block]:
        """Yield the rows from ``after`` on, in order, to ``until`` or the last."""
        import numpy as np

        history = self._history
        spans = list(ranges(history.indptr[: _after_last(until)], self._block, after))
        for number, (start, stop) in enumerate(spans, 1):
            indptr = (history.indptr[start : stop + 1] - history.indptr[start]).astype(np.int32)
            block = _csr(history.values(start, stop), history.items(start, stop), indptr, self._columns)
            if number < len(spans):
                history.announce(*spans[number])
            yield start, stop, block
            del block  # before the next one is read


def _after_last(until: int | None) -> int | None:
    return None if until is None else until + 1


def _csr(values: Any, columns: Any, indptr: Any, width: int) -> Any:
    import scipy.sparse

    return scipy.sparse.csr_matrix((values, columns, indptr), shape=(len(indptr) - 1, width), copy=False)


def in_memory(history: History, kept: Kept, *, items: int, hyper: Mapping[str, Any]) -> Sides:
    """Make both matrices in memory, 16 bytes per interaction.

    Parameters
    ----------
    history
        All interactions.
    kept
        The interactions that are trained on.
    items
        Number of items.
    hyper
        Hyper-parameters of the confidences (``confidence``).
    """
    matrix = training_matrix(history, kept, items=items, hyper=hyper)
    return Sides(InMemory(matrix), InMemory(matrix.T.tocsr()))


def training_matrix(history: History, kept: Kept, *, items: int, hyper: Mapping[str, Any]) -> Any:
    """Make the matrix by user in memory, allocated once at its final size.

    Users without trained interactions are left out. The parameters are those of ``in_memory``.

    Returns
    -------
    scipy.sparse.csr_matrix
        Confidences, shape (users, items), float32.
    """
    import numpy as np

    lengths = np.zeros(history.rows, np.int64)
    for start, stop in history.blocks():
        lengths[start:stop] = _lengths(history, kept.mask(start, stop), start, stop)
    users = lengths > 0
    indptr = np.zeros(int(users.sum()) + 1, np.int32 if lengths.sum() < 2**31 else np.int64)
    np.cumsum(lengths[users], out=indptr[1:])
    indices, data = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    filled = 0
    for start, stop in history.blocks():
        keep = kept.mask(start, stop)
        block = history.items(start, stop)[keep]
        indices[filled : filled + len(block)] = block
        data[filled : filled + len(block)] = confidence(history.values(start, stop)[keep], hyper)
        filled += len(block)
    return _csr(data, indices, indptr, items)


def _lengths(history: History, keep: NDArray[np.bool_], start: int, stop: int) -> NDArray[np.int64]:
    """Number of trained interactions of each of the users ``start`` to ``stop``; ``keep`` is their mask."""
    import numpy as np

    before = np.concatenate([[0], np.cumsum(keep)])
    lengths: NDArray[np.int64] = np.diff(before[history.indptr[start : stop + 1] - history.indptr[start]])
    return lengths


def on_disk(
    directory: Path, history: History, kept: Kept, *, items: int, hyper: Mapping[str, Any], block: int
) -> Sides:
    """Write both matrices to disk, as ``by_user.*.npy`` and ``by_item.*.npy``.

    The other parameters are those of ``in_memory``.

    Parameters
    ----------
    directory
        Folder of the files.
    block
        Interactions that are read at a time.
    """
    by_item = _write_users(directory, history, kept, items=items, hyper=hyper)
    _transpose(directory, by_item, size=-(-block // SORTED_SHARE))
    users = OnDisk(directory, "by_user", items, block)
    return Sides(users, OnDisk(directory, "by_item", users.rows, block))


def remove(directory: Path) -> None:
    """Remove the files of ``on_disk``."""
    for name in ("by_user", "by_item"):
        for path in directory.glob(f"{name}.*.npy"):
            path.unlink()


def _write_users(
    directory: Path, history: History, kept: Kept, *, items: int, hyper: Mapping[str, Any]
) -> NDArray[np.int64]:
    """Write the matrix by user, without users that have no trained interactions; returns the items' lengths."""
    import numpy as np

    by_item = np.zeros(items, np.int64)
    total = 0
    with (
        NpyWriter(directory / "by_user.indptr.npy", "<i8") as indptr,
        NpyWriter(directory / "by_user.items.npy", "<i4") as columns,
        NpyWriter(directory / "by_user.values.npy", "<f4") as values,
    ):
        indptr.append(np.zeros(1, np.int64))
        for start, stop in history.blocks():
            keep = kept.mask(start, stop)
            block = history.items(start, stop)[keep]
            columns.append(block)
            values.append(confidence(history.values(start, stop)[keep], hyper))
            by_item += np.bincount(block, minlength=items)
            lengths = _lengths(history, keep, start, stop)
            indptr.append(total + np.cumsum(lengths[lengths > 0]))
            total += len(block)
    return by_item


def _transpose(directory: Path, lengths: NDArray[np.int64], *, size: int) -> None:
    """Write the matrix by item: distribute the pairs over buckets of consecutive items, and sort each bucket."""
    import numpy as np

    ends = np.cumsum(lengths)
    buckets = external_sort.Buckets(directory, ends, PAIR, size=size)
    for start, stop, block in OnDisk(directory, "by_user", len(lengths), size).blocks():
        owners = np.repeat(np.arange(start, stop, dtype=np.int32), np.diff(block.indptr))
        buckets.add({"row": block.indices, "column": owners, "value": block.data})
    with (
        NpyWriter(directory / "by_item.items.npy", "<i4") as columns,
        NpyWriter(directory / "by_item.values.npy", "<f4") as values,
    ):
        for bucket in buckets.sorted():
            columns.append(bucket["column"])
            values.append(bucket["value"])
    with NpyWriter(directory / "by_item.indptr.npy", "<i8") as indptr:
        indptr.append(np.zeros(1, np.int64))
        indptr.append(ends)
