"""Users or histories that lists are made for, part by part: the model's own users, or those of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from apps.recsys.data import arrow_numpy
from apps.recsys.data.csr_store import History, NpyReader
from apps.recsys.data.questions.subjects import NAME

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Histories = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]
    """Histories of n users: offsets of their items, shape (n + 1,); items; values."""


class Part(NamedTuple):
    """Consecutive users or histories that are ranked together."""

    start: int
    """Number of the first one."""
    ids: Any
    """Their ids, an Arrow array: those of users, or the numbers of histories."""
    read: Callable[[], Histories]
    """Reads the histories."""


def all_users(model: Path, history: History, size: int) -> Iterator[Part]:
    """Yield the users of a model in parts of ``size``."""
    for start, ids in _ids(model / "users.parquet", size):
        yield Part(start, ids, lambda start=start, stop=start + len(ids): _rows(history, start, stop))  # type: ignore[misc]


def listed_users(folder: Path, history: History, size: int) -> Iterator[Part]:
    """Yield the users of a file, which ``subjects.read_users`` read; one who is not in the model has no items."""
    rows = NpyReader(folder / f"{NAME}.rows.npy")[:]
    for start, ids in _ids(folder / f"{NAME}.parquet", size):
        part = rows[start : start + len(ids)]
        yield Part(start, ids, lambda part=part: _some(history, part))  # type: ignore[misc]


def listed_histories(folder: Path, size: int) -> Iterator[Part]:
    """Yield the histories of a file, which ``subjects.read_histories`` read."""
    import numpy as np

    history = History(folder, NAME)
    for start in range(0, history.rows, size):
        stop = min(start + size, history.rows)
        ids = arrow_numpy.numbers(np.arange(start, stop))
        yield Part(start, ids, lambda start=start, stop=stop: _ones(history, start, stop))  # type: ignore[misc]


def _ids(path: Path, size: int) -> Iterator[tuple[int, Any]]:
    """Yield ids with the number of the first; of none, none once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = 0
    with pq.ParquetFile(arrow_numpy.native(path), pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=size, columns=["id"], use_threads=False):
            yield start, batch.column(0)
            start += len(batch)
        if not start:
            yield start, pa.nulls(0, file.schema_arrow.field("id").type)  # ``pa.array`` would import pandas


def _rows(history: History, start: int, stop: int) -> Histories:
    offsets = history.indptr[start : stop + 1] - history.indptr[start]
    return offsets, history.items(start, stop), history.values(start, stop)


def _some(history: History, rows: NDArray[np.int64]) -> Histories:
    """Histories of some rows; -1 stands for one without items."""
    import numpy as np

    indptr = history.indptr
    lengths = np.where(rows >= 0, indptr[rows + 1] - indptr[rows], 0)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    items, values = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
    for place in np.flatnonzero(lengths):
        span = slice(int(offsets[place]), int(offsets[place + 1]))
        items[span], values[span] = history.items(int(rows[place])), history.values(int(rows[place]))
    return offsets, items, values


def _ones(history: History, start: int, stop: int) -> Histories:
    import numpy as np

    items = history.items(start, stop)
    return history.indptr[start : stop + 1] - history.indptr[start], items, np.ones(len(items), np.float32)
