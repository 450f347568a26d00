"""Users or histories that lists are made for: those of a file, as rows of a model, or a share of the model's users.

A folder then has ``subjects.parquet`` with the users' ids and ``subjects.rows.npy`` with their rows, or
``subjects.*.npy``, the histories as ``apps.recsys.data.csr_store`` has them. The files are read before planning, since
the plan needs their sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import arrow_numpy
from apps.recsys.data.csr_store import NpyReader, NpyWriter
from apps.recsys.data.id_table import IdTable, write_table
from apps.recsys.data.questions import id_files
from common.errors import BadInput
from common.files import sha256
from common.parts import Part

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "subjects"
"""Name of the files."""
LOOKED_UP = 1 << 13
"""Ids looked up at a time. Each time all ids of the model are scanned."""
NUMBER_BYTES = 8
"""Bytes of a history's number."""
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Subjects:
    """Sizes of what was read."""

    kind: str
    """``"users"`` or ``"histories"``."""
    count: int
    """Number of lists to make."""
    longest: int
    """Most items of one of them."""
    largest_part: int
    """Most items of as many consecutive ones as are ranked together."""
    unknown: int
    """Users or items of the file that are not in the model."""
    first_unknown: str
    """The first of these; empty: all are in the model."""
    named: int
    """Ids in the file."""
    repeated: int
    """Users that stand in the file once more."""
    popular: int
    """Subjects without a history: they are shown popular items."""
    id_bytes: int
    """Mean size of their ids in a file, with their rows."""
    digest: str
    """SHA-256 of the rows and ids, by which unfinished lists are recognised."""


def read_users(path: Path, model: Path, directory: Path, *, part: int) -> Subjects:
    """Write the users of a file, each once.

    Parameters
    ----------
    path
        A file that ``id_files.ids`` reads.
    model
        The model folder.
    directory
        Folder for the files.
    part
        Number of users that are ranked together.

    Raises
    ------
    BadInput
        As ``id_files.ids``, or it has no id.
    """
    import numpy as np

    table = IdTable(model / "users.parquet")
    indptr = NpyReader(model / "history.indptr.npy")[:]
    seen = np.zeros(len(table), bool)
    counted = {"named": 0, "unknown": 0, "repeated": 0, "others": 0}
    first_unknown = ""

    def kept(rows_out: NpyWriter) -> Iterator[Any]:
        nonlocal first_unknown
        for some in _chunks(id_files.ids(path, "user")):
            rows = table.rows(some)
            new = np.ones(len(rows), bool)
            known = np.flatnonzero(rows >= 0)
            firsts = np.zeros(len(known), bool)
            firsts[np.unique(rows[known], return_index=True)[1]] = True
            new[known] = firsts & ~seen[rows[known]]
            seen[rows[known]] = True
            unknown = [some[place] for place in np.flatnonzero(rows < 0)]
            first_unknown = first_unknown or (unknown[0] if unknown else "")
            counted["named"] += len(some)
            counted["unknown"] += len(unknown)
            counted["repeated"] += int((~new).sum())
            counted["others"] += sum(not _WHOLE.fullmatch(id_) for id_ in unknown)
            rows_out.append(rows[new])
            yield arrow_numpy.text(id_ for id_, is_new in zip(some, new, strict=True) if is_new)

    rows_path, ids_path = directory / f"{NAME}.rows.npy", directory / f"{NAME}.parquet"
    with NpyWriter(rows_path, "<i8") as rows_out:
        write_table(ids_path, kept(rows_out))
    rows = NpyReader(rows_path)[:]
    if not len(rows):
        raise BadInput(f"{path}: no id of a user", public="no ids")
    if table.whole and not counted["others"]:
        _as_numbers(ids_path)
    return replace(
        _of_users(rows, indptr, ids_path, part),
        unknown=counted["unknown"],
        first_unknown=first_unknown,
        named=counted["named"],
        repeated=counted["repeated"],
    )


def read_share(share: Part, model: Path, directory: Path, *, part: int) -> Subjects:
    """Write the users of a model that one of several parts of the work has, in the model's order.

    Parameters
    ----------
    share
        Which part; a user belongs to it by his id (``Part.holds``).
    model, directory, part
        As in ``read_users``.
    """
    import numpy as np
    import pyarrow.parquet as pq

    indptr = NpyReader(model / "history.indptr.npy")[:]
    rows_path, ids_path = directory / f"{NAME}.rows.npy", directory / f"{NAME}.parquet"
    start = 0
    with (
        NpyWriter(rows_path, "<i8") as rows_out,
        pq.ParquetFile(arrow_numpy.native(model / "users.parquet"), pre_buffer=False) as file,
    ):

        def kept() -> Iterator[Any]:
            nonlocal start
            for batch in file.iter_batches(batch_size=LOOKED_UP, columns=["id"], use_threads=False):
                ids = batch.column(0)
                places = np.array([share.holds(str(id_)) for id_ in ids.to_pylist()], bool).nonzero()[0]
                rows_out.append(start + places)
                yield ids.take(arrow_numpy.numbers(places))
                start += len(ids)

        write_table(ids_path, kept())
    return _of_users(NpyReader(rows_path)[:], indptr, ids_path, part)


def _of_users(rows: NDArray[np.int64], indptr: NDArray[np.int64], ids_path: Path, part: int) -> Subjects:
    """Sizes of users of whom these are the rows, -1 for one who is not in the model; each is named once."""
    import numpy as np

    lengths = np.where(rows >= 0, np.diff(indptr)[np.maximum(rows, 0)], 0)
    together = np.add.reduceat(lengths, np.arange(0, len(lengths), part)) if len(rows) else lengths
    return Subjects(
        kind="users",
        count=len(rows),
        longest=int(lengths.max(initial=0)),
        largest_part=int(together.max(initial=0)),
        unknown=0,
        first_unknown="",
        named=len(rows),
        repeated=0,
        popular=int((lengths == 0).sum()),
        id_bytes=ids_path.stat().st_size // max(1, len(rows)),
        digest=sha256(ids_path.with_name(f"{NAME}.rows.npy")) + sha256(ids_path),
    )


def read_histories(path: Path, model: Path, directory: Path, *, part: int) -> Subjects:
    """Write the histories of a file; an item counts once in each. Otherwise as ``read_users``.

    Raises
    ------
    BadInput
        As ``id_files.histories``, or it has no history.
    """
    import numpy as np

    table = IdTable(model / "items.parquet")
    named = unknown = 0
    first_unknown = ""
    lengths: list[NDArray[np.int64]] = []
    paths = [directory / f"{NAME}.{name}.npy" for name in ("items", "indptr")]
    with NpyWriter(paths[0], "<i4") as items_out:
        for lists in _batches(id_files.histories(path)):
            ids = [id_ for one in lists for id_ in one]
            rows = np.concatenate([table.rows(some) for some in _chunks(ids)]) if ids else np.zeros(0, np.int64)
            named, missing = named + len(ids), np.flatnonzero(rows < 0)
            unknown += len(missing)
            first_unknown = first_unknown or (ids[missing[0]] if len(missing) else "")
            owner = np.repeat(np.arange(len(lists)), [len(one) for one in lists])[rows >= 0]
            pairs = np.unique(owner << 32 | rows[rows >= 0])
            items_out.append((pairs & 0xFFFFFFFF).astype(np.int32))
            lengths.append(np.bincount(pairs >> 32, minlength=len(lists)))
    if not lengths:
        raise BadInput(f"{path}: no history", public="no histories")
    counts = np.concatenate(lengths)
    with NpyWriter(paths[1], "<i8") as indptr_out:
        indptr_out.append(np.concatenate([[0], np.cumsum(counts)]))
    return Subjects(
        kind="histories",
        count=len(counts),
        longest=int(counts.max()),
        largest_part=int(np.add.reduceat(counts, np.arange(0, len(counts), part)).max()),
        unknown=unknown,
        first_unknown=first_unknown,
        named=named,
        repeated=0,
        popular=int((counts == 0).sum()),
        id_bytes=NUMBER_BYTES,
        digest="".join(map(sha256, paths)),
    )


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(ids)
    while some := list(islice(rest, LOOKED_UP)):
        yield some


def _batches(lists: Iterator[list[str]]) -> Iterator[list[list[str]]]:
    """Yield lists with about ``LOOKED_UP`` ids together, one list at least."""
    batch: list[list[str]] = []
    size = 0
    for one in lists:
        batch.append(one)
        size += len(one) + 1
        if size >= LOOKED_UP:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _as_numbers(path: Path) -> None:
    """Write a table of ids again with 64-bit integers, which they all are."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    texts = path.with_name("texts.parquet")
    path.rename(texts)
    with pq.ParquetFile(arrow_numpy.native(texts), pre_buffer=False) as file:
        batches = file.iter_batches(batch_size=LOOKED_UP, columns=["id"], use_threads=False)
        write_table(path, (pc.cast(batch.column(0), pa.int64()) for batch in batches))
    texts.unlink()
