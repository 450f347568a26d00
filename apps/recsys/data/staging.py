"""From rows of text to a CSR matrix on disk, in three passes of bounded memory.

1. ``stage``: every row becomes (user, item, value[, time]) numbers, appended to scratch files; ids get numbers in
   the order of their first appearance.
2. ``keep``: users and items with too few rows are dropped, again and again until none is left.
3. ``build``: rows are dealt into buckets of neighbouring users, and each bucket is sorted and its repeated pairs
   summed, on its own.

What grows with the data is the two tables of ids and a few numbers per user and item; rows only pass through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import arrow_numpy
from apps.recsys.data.csr_store import NpyReader, NpyWriter
from apps.recsys.data.external_sort import Buckets
from apps.recsys.data.id_index import BadId, Vocabulary
from apps.recsys.data.readers import Source, batches
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BUCKET_ROWS = 1 << 18
"""Rows sorted at a time."""
STAGED = {"user": "<i4", "item": "<i4", "value": "<f4", "time": "<f8"}
"""Scratch columns."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What to leave out."""

    min_value: float | None = None
    """Rows with a smaller value."""
    min_user: int = 1
    """Users with fewer rows."""
    min_item: int = 1
    """Items with fewer rows."""


@dataclass(slots=True)
class Staged:
    """What the first two passes found."""

    rows: int = 0
    """Rows read."""
    kept: int = 0
    """Rows that go into the matrix."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> rows."""
    user_rows: NDArray[np.int64] | None = None
    """Rows of each user; 0 once the user is dropped."""
    item_rows: NDArray[np.int64] | None = None
    """Rows of each item."""
    largest_bucket: int = 0
    """Rows of the largest bucket that was sorted at once."""


def stage(
    sources: Sequence[Source], directory: Path, users: Vocabulary, items: Vocabulary, *, filters: Filters, timed: bool
) -> Staged:
    """First and second pass: number the ids, write the rows to scratch, decide who stays.

    Parameters
    ----------
    timed
        Keep the time column; where a file has none, the order of its rows stands for it.

    Raises
    ------
    BadInput
        As ``reading.batches``; a negative or infinite value; nothing left; one user or one item only.
    """
    found = Staged()
    columns = [name for name in STAGED if timed or name != "time"]
    writers = {name: NpyWriter(directory / f"staged.{name}.npy", STAGED[name]) for name in columns}
    for source in sources:
        for batch in _checked(source, found, filters, timed=timed):
            coded = dict(batch)
            for name, vocabulary in (("user", users), ("item", items)):
                coded[name] = _encoded(vocabulary, batch[name], source, str(getattr(source.columns, name)))
            for name, writer in writers.items():
                writer.append(coded[name])
    for writer in writers.values():
        writer.__exit__(None, None, None)
    if not found.rows:
        raise BadInput(f"{sources[0].path}: no rows below the header", public="no rows")
    _count(found, directory, len(users), len(items), filters)
    for what, rows in (("user", found.user_rows), ("item", found.item_rows)):
        assert rows is not None
        if (left := int((rows > 0).sum())) < 2:
            dropped = ", ".join(f"{n} rows {why}" for why, n in found.dropped.items()) or "none"
            raise BadInput(
                f"{sources[0].path}: {left} {what}{'' if left == 1 else 's'} left; at least two are needed"
                f" (dropped: {dropped})",
                public="too few users or items",
            )
    return found


def _encoded(vocabulary: Vocabulary, column: Any, source: Source, name: str) -> NDArray[np.int32]:
    """Numbers of a column's ids, or whose fault it is that there are none."""
    import pyarrow as pa

    try:
        return vocabulary.encode(column)
    except BadId as error:
        raise BadInput(f"{source.path}: column {name!r}: an id {error}", public="unusable id") from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise BadInput(
            f"{source.path}: column {name!r}: {column.type} cannot be an id; text or numbers can",
            public="unusable id",
        ) from None


def _checked(source: Source, found: Staged, filters: Filters, *, timed: bool) -> Iterator[dict[str, Any]]:
    """Batches of usable rows: ids present, values positive and finite."""
    import numpy as np
    import pyarrow.compute as pc

    named = source.columns
    time = named.time if timed else None
    names = [str(name) for name in (named.user, named.item, named.value, time) if name is not None]
    for batch in batches(source, names, number=named.value, time=time):
        if not (count := batch.num_rows):
            continue
        user, item = batch.column(str(named.user)), batch.column(str(named.item))
        good = np.ones(count, bool)
        for column in (user, item):
            good &= present(column)
        value = np.ones(count, np.float32)
        if named.value is not None:
            value = arrow_numpy.floats(batch.column(named.value))
            bad = np.isinf(value) | ((value < 0) & (filters.min_value is None))
            if bad.any():
                row = int(bad.argmax())
                raise BadInput(
                    f"{source.path}: row {found.rows + row + 1}, column {named.value!r}: {value[row]:g} is not a"
                    " finite number of zero or more; a value says how much of an item someone had: leave rows out"
                    " with --min-value, or name another column with --value-col",
                    public="value out of range",
                )
            good &= ~np.isnan(value)
        when = arrow_numpy.floats(batch.column(time)) if time else np.arange(found.rows, found.rows + count)
        good &= ~np.isnan(when)
        _drop(found, "with an empty cell", count - int(good.sum()))
        small = good & (value < filters.min_value if filters.min_value is not None else value == 0)
        _drop(found, "below --min-value" if filters.min_value is not None else "of value 0", int(small.sum()))
        good &= ~small
        found.rows += count
        if good.all():
            yield {"user": user, "item": item, "value": value, "time": when}
        elif good.any():
            yield {
                "user": pc.filter(user, good),
                "item": pc.filter(item, good),
                "value": value[good],
                "time": when[good],
            }


def present(column: Any) -> NDArray[np.bool_]:
    """Which ids are neither null nor empty text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    here = arrow_numpy.valid(column)
    return here & (arrow_numpy.values(pc.binary_length(column)) > 0) if pa.types.is_string(column.type) else here


def _drop(found: Staged, why: str, rows: int) -> None:
    if rows:
        found.dropped[why] = found.dropped.get(why, 0) + rows


def _pairs(directory: Path) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    user, item = (NpyReader(directory / f"staged.{name}.npy") for name in ("user", "item"))
    for start in range(0, user.length, BUCKET_ROWS):
        yield user[start : start + BUCKET_ROWS], item[start : start + BUCKET_ROWS]
    user.close()
    item.close()


def _count(found: Staged, directory: Path, users: int, items: int, filters: Filters) -> None:
    """Rows by user and item, repeated until every one left has enough of them (a k-core where both are asked)."""
    import numpy as np

    keep_user, keep_item = np.ones(users, bool), np.ones(items, bool)
    while True:
        user_rows, item_rows = np.zeros(users, np.int64), np.zeros(items, np.int64)
        for user, item in _pairs(directory):
            good = keep_user[user] & keep_item[item]
            user_rows += np.bincount(user[good], minlength=users)
            item_rows += np.bincount(item[good], minlength=items)
        now_user, now_item = user_rows >= filters.min_user, item_rows >= filters.min_item
        if (now_user == keep_user).all() and (now_item == keep_item).all():
            break
        keep_user, keep_item = now_user & (user_rows > 0), now_item & (item_rows > 0)
    found.user_rows, found.item_rows = user_rows, item_rows
    found.kept = int(user_rows.sum())
    usable = found.rows - sum(found.dropped.values())
    _drop(found, "of users or items below --min-user, --min-item", usable - found.kept)


def build(found: Staged, directory: Path, *, timed: bool) -> Mapping[str, int]:
    """Third pass: ``history.*.npy`` in ``directory``, repeated pairs summed; with ``timed``, ``history.times.npy``.

    Returns
    -------
    Mapping
        ``users``, ``items``, ``interactions`` (distinct pairs), ``longest`` (the most items of one user).
    """
    import numpy as np

    assert found.user_rows is not None and found.item_rows is not None
    user_of = _renumber(found.user_rows)
    item_of = _renumber(found.item_rows)
    ends = np.cumsum(found.user_rows[found.user_rows > 0])
    users = len(ends)
    staged = {name: kind for name, kind in STAGED.items() if timed or name != "time"}
    piles = Buckets(directory, ends, staged, size=BUCKET_ROWS)
    found.largest_bucket = piles.largest
    _deal(directory, piles, user_of, item_of, names=list(staged))
    names = {"items": "<i4", "values": "<f4"} | ({"times": "<f8"} if timed else {})
    out = {name: NpyWriter(directory / f"history.{name}.npy", dtype) for name, dtype in names.items()}
    lengths = np.zeros(users, np.int64)
    for rows in piles.sorted():
        user, columns = _merge(rows)
        lengths += np.bincount(user, minlength=users)
        for name, writer in out.items():
            writer.append(columns[name])
    for writer in out.values():
        writer.__exit__(None, None, None)
    with NpyWriter(directory / "history.indptr.npy", "<i8") as indptr:
        indptr.append(np.zeros(1, np.int64))
        indptr.append(np.cumsum(lengths))
    for path in directory.glob("staged.*.npy"):
        path.unlink()
    items = int((found.item_rows > 0).sum())
    return {"users": users, "items": items, "interactions": int(lengths.sum()), "longest": int(lengths.max())}


def _renumber(rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """Old number -> new number, -1 for those dropped; the order stays."""
    import numpy as np

    return np.where(rows > 0, np.cumsum(rows > 0) - 1, -1).astype(np.int32)


def _deal(
    directory: Path, piles: Buckets, user_of: NDArray[np.int32], item_of: NDArray[np.int32], *, names: Sequence[str]
) -> None:
    """Append every kept row to its bucket."""
    readers = {name: NpyReader(directory / f"staged.{name}.npy") for name in names}
    for start in range(0, readers["user"].length, BUCKET_ROWS):
        part = slice(start, start + BUCKET_ROWS)
        rows = {"user": user_of[readers["user"][part]], "item": item_of[readers["item"][part]]}
        kept = (rows["user"] >= 0) & (rows["item"] >= 0)
        rows |= {name: readers[name][part] for name in names[2:]}
        piles.deal({name: column[kept] for name, column in rows.items()})
    for reader in readers.values():
        reader.close()


def _merge(rows: NDArray[Any]) -> tuple[NDArray[np.int32], dict[str, NDArray[Any]]]:
    """Sum the repeated pairs of sorted rows; the last time of a pair counts."""
    import numpy as np

    first = np.ones(len(rows), bool)
    first[1:] = (rows["user"][1:] != rows["user"][:-1]) | (rows["item"][1:] != rows["item"][:-1])
    starts = np.flatnonzero(first)
    columns = {"items": rows["item"][starts], "values": np.add.reduceat(rows["value"], starts)}
    if "time" in (rows.dtype.names or ()):
        columns["times"] = np.maximum.reduceat(rows["time"], starts)
    return rows["user"][starts], columns
