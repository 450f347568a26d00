"""From rows of text to a CSR matrix on disk, in three passes of bounded memory.

1. Staging: every row becomes numbers (user, item, value[, time]) in scratch files; ids are numbered in the order of
   their first appearance.
2. Filtering: users and items with too few rows are dropped, repeatedly, until none is left.
3. Building: rows are distributed over buckets of consecutive users; each bucket is sorted by itself, and its repeated
   pairs are merged (``DUPLICATES``).

The memory grows with the number of ids and by a few numbers per user and item, not with the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import arrow_numpy
from apps.recsys.data.csr_store import NpyReader, NpyWriter
from apps.recsys.data.external_sort import Buckets
from apps.recsys.data.formats import kinds
from apps.recsys.data.id_index import BadId, Vocabulary, plain_integers
from apps.recsys.data.readers import Source, batches
from apps.recsys.data.updates.base import Base
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BUCKET_ROWS = 1 << 18
"""Rows sorted at a time, approximately."""
STAGED = {"user": "<i4", "item": "<i4", "value": "<f4", "time": "<f8"}
"""Scratch columns and their types."""
DUPLICATES = ("sum", "last", "once")
"""What repeated rows of a user and an item count: the sum of their values, the last of them, or 1."""

ADVICE = {
    False: "a value says how much of an item someone had: leave rows out with --min-value, or name another column with"
    " --value-col",
    True: "an update adds interactions; --forget USER takes those of a user out",
}
"""Advice on a value that cannot be, by whether rows are added to a model."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Rows, users and items that are left out."""

    min_value: float | None = None
    """Rows with a smaller value are left out."""
    min_user: int = 1
    """Users with fewer rows are left out."""
    min_item: int = 1
    """Items with fewer rows are left out."""


@dataclass(slots=True)
class Staged:
    """Result of the first two passes."""

    rows: int = 0
    """Rows read."""
    updates: bool = False
    """True if rows are added to a model."""
    base_rows: int = 0
    """Interactions of the model that rows are added to, without those of forgotten users."""
    forgotten: int = 0
    """Interactions of that model's forgotten users."""
    kept: int = 0
    """Rows that are in the matrix."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> number of rows left out."""
    user_rows: NDArray[np.int64] | None = None
    """Number of rows of each user, 0 for dropped users; shape (users before filtering,)."""
    item_rows: NDArray[np.int64] | None = None
    """Number of rows of each item, 0 for dropped items; shape (items before filtering,)."""
    largest_bucket: int = 0
    """Rows of the largest bucket."""


def stage(
    sources: Sequence[Source],
    directory: Path,
    users: Vocabulary,
    items: Vocabulary,
    *,
    filters: Filters,
    timed: bool,
    base: Base | None = None,
) -> Staged:
    """First and second pass: number the ids, write the rows to scratch files, decide which ones stay.

    Parameters
    ----------
    sources
        Files of interactions.
    directory
        Folder of the scratch files.
    users, items
        Empty vocabularies.
    filters
        Rows, users and items that are left out.
    timed
        True to keep times. If a file has no times, the numbers of the rows are used instead of all times.
    base
        A model whose interactions come first; its rows keep their order.

    Raises
    ------
    BadInput
        As ``readers.batches`` and ``Base.number``; a value is negative or infinite; an id is unusable, or text where
        those of ``base`` are integers; no row, or fewer than two users or items are left.
    """
    import numpy as np

    staged = Staged(updates=base is not None)
    forgotten = np.zeros(0, np.int32) if base is None else base.number(users, items)
    whole = {name: base is not None and base.whole(name) for name in ("user", "item")}
    has_times = all(source.columns.time is not None for source in sources)
    columns = [name for name in STAGED if timed or name != "time"]
    writers = {name: NpyWriter(directory / f"staged.{name}.npy", STAGED[name]) for name in columns}
    for user, item, value in base.rows(forgotten) if base is not None else ():
        staged.base_rows += len(user)
        first = {"user": user, "item": item, "value": value, "time": np.full(len(user), -np.inf) if timed else None}
        for name, writer in writers.items():
            writer.append(first[name])
    staged.forgotten = 0 if base is None else base.interactions - staged.base_rows
    for source in sources:
        for batch in _checked(source, staged, filters, time=source.columns.time if timed and has_times else None):
            coded = dict(batch)
            for name, vocabulary in (("user", users), ("item", items)):
                column = str(getattr(source.columns, name))
                coded[name] = _encoded(vocabulary, batch[name], source, column, whole=whole[name])
            if len(forgotten):
                stays = ~np.isin(coded["user"], forgotten)
                _drop(staged, "of users of --forget", int((~stays).sum()))
                coded = {name: array[stays] for name, array in coded.items()}
            for name, writer in writers.items():
                writer.append(coded[name])
    for writer in writers.values():
        writer.__exit__(None, None, None)
    if sources and not staged.rows:
        raise BadInput(f"{sources[0].path}: no rows below the header", public="no rows")
    _count(staged, directory, len(users), len(items), filters)
    for what, rows in (("user", staged.user_rows), ("item", staged.item_rows)):
        assert rows is not None
        if (left := int((rows > 0).sum())) < 2:
            dropped = ", ".join(f"{n} rows {why}" for why, n in staged.dropped.items()) or "none"
            where = sources[0].path if sources else base.directory if base is not None else directory
            raise BadInput(
                f"{where}: {left} {what}{'' if left == 1 else 's'} left; at least two are needed (dropped: {dropped})",
                public="too few users or items",
            )
    return staged


def _encoded(
    vocabulary: Vocabulary, column: Any, source: Source, name: str, *, whole: bool = False
) -> NDArray[np.int32]:
    """Numbers of a column's ids, which must be integers if ``whole``; raises ``BadInput`` naming file and column."""
    import pyarrow as pa

    if whole and (wrong := next(_no_integers(column), None)) is not None:
        raise BadInput(
            f"{source.path}: column {name!r}: {wrong!r} is text, and the model's ids are integers",
            public="ids of another type",
        )
    try:
        return vocabulary.encode(column)
    except BadId as error:
        raise BadInput(f"{source.path}: column {name!r}: an id {error}", public="unusable id") from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise BadInput(
            f"{source.path}: column {name!r}: {column.type} cannot be an id; text or numbers can",
            public="unusable id",
        ) from None


def _no_integers(column: Any) -> Iterator[str]:
    """Yield the ids of a column that are no integers in their usual form."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = column.dictionary if pa.types.is_dictionary(column.type) else column
    if not pa.types.is_integer(values.type) and not plain_integers(texts := pc.cast(values, pa.string())):
        yield from (text for text in texts.to_pylist() if not plain_integers(arrow_numpy.text([text])))


def _checked(source: Source, staged: Staged, filters: Filters, *, time: str | None) -> Iterator[dict[str, Any]]:
    """Yield the usable rows of a file in batches: ids that are not empty, values that are positive and finite."""
    import numpy as np
    import pyarrow.compute as pc

    named = source.columns
    names = [str(name) for name in (named.user, named.item, named.value, time) if name is not None]
    for batch in batches(source, names, number=named.value, time=time):
        if not (count := batch.num_rows):
            continue
        user, item = batch.column(str(named.user)), batch.column(str(named.item))
        good = np.ones(count, bool)
        for column in (user, item):
            good &= kinds.present(column)
        value = np.ones(count, np.float32)
        if named.value is not None:
            value = arrow_numpy.floats(batch.column(named.value))
            with np.errstate(over="ignore"):
                bad = np.isinf(value.astype(np.float32)) | ((value < 0) & (filters.min_value is None))
            if bad.any():
                row = int(bad.argmax())
                raise BadInput(
                    f"{source.path}: row {staged.rows + row + 1}, column {named.value!r}: {value[row]:g} is not a"
                    f" finite number of zero or more, below 3.4e38; {ADVICE[staged.updates]}",
                    public="value out of range",
                )
            good &= ~np.isnan(value)
        when = arrow_numpy.floats(batch.column(time)) if time else np.arange(staged.rows, staged.rows + count)
        good &= ~np.isnan(when)
        _drop(staged, "with an empty cell", count - int(good.sum()))
        small = good & (value < filters.min_value if filters.min_value is not None else value == 0)
        _drop(staged, "below --min-value" if filters.min_value is not None else "of value 0", int(small.sum()))
        good &= ~small
        staged.rows += count
        if good.all():
            yield {"user": user, "item": item, "value": value, "time": when}
        elif good.any():
            mask = arrow_numpy.mask(good)  # with a NumPy mask, pc.filter imports pandas (30 MiB)
            yield {
                "user": pc.filter(user, mask),
                "item": pc.filter(item, mask),
                "value": value[good],
                "time": when[good],
            }


def _drop(staged: Staged, why: str, rows: int) -> None:
    if rows:
        staged.dropped[why] = staged.dropped.get(why, 0) + rows


def _pairs(directory: Path) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    user, item = (NpyReader(directory / f"staged.{name}.npy") for name in ("user", "item"))
    for start in range(0, user.length, BUCKET_ROWS):
        yield user[start : start + BUCKET_ROWS], item[start : start + BUCKET_ROWS]
    user.close()
    item.close()


def _count(staged: Staged, directory: Path, users: int, items: int, filters: Filters) -> None:
    """Count rows by user and item and drop users and items with too few, until nothing changes (a k-core)."""
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
    staged.user_rows, staged.item_rows = user_rows, item_rows
    staged.kept = int(user_rows.sum())
    usable = staged.base_rows + staged.rows - sum(staged.dropped.values())
    _drop(staged, "of users or items below --min-user, --min-item", usable - staged.kept)


def build(staged: Staged, directory: Path, *, timed: bool, duplicates: str = "sum") -> Mapping[str, int]:
    """Third pass: write ``history.*.npy``, with repeated pairs merged.

    Parameters
    ----------
    staged
        Result of ``stage``; its ``largest_bucket`` is set.
    directory
        Folder of the scratch files and of the history.
    timed
        True to write ``history.times.npy`` too; ``last`` needs times.
    duplicates
        What repeated pairs count, one of ``DUPLICATES``.

    Returns
    -------
    Mapping
        ``users``, ``items``, ``interactions`` (distinct pairs), ``longest`` (the largest number of items of one user).
    """
    import numpy as np

    assert staged.user_rows is not None and staged.item_rows is not None
    user_of = renumbered(staged.user_rows)
    item_of = renumbered(staged.item_rows)
    ends = np.cumsum(staged.user_rows[staged.user_rows > 0])
    users = len(ends)
    fields = {name: kind for name, kind in STAGED.items() if timed or name != "time"}
    buckets = Buckets(directory, ends, fields, size=BUCKET_ROWS)
    staged.largest_bucket = buckets.largest
    _distribute(directory, buckets, user_of, item_of, names=list(fields))
    names = {"items": "<i4", "values": "<f4"} | ({"times": "<f8"} if timed else {})
    out = {name: NpyWriter(directory / f"history.{name}.npy", dtype) for name, dtype in names.items()}
    lengths = np.zeros(users, np.int64)
    for rows in buckets.sorted(stable=duplicates == "last"):
        user, columns = _merge(rows, duplicates)
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
    items = int((staged.item_rows > 0).sum())
    return {"users": users, "items": items, "interactions": int(lengths.sum()), "longest": int(lengths.max())}


def renumbered(rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """New number by old number, in the same order; -1 for those without rows."""
    import numpy as np

    return np.where(rows > 0, np.cumsum(rows > 0) - 1, -1).astype(np.int32)


def _distribute(
    directory: Path, buckets: Buckets, user_of: NDArray[np.int32], item_of: NDArray[np.int32], *, names: Sequence[str]
) -> None:
    """Append every kept row to its bucket."""
    readers = {name: NpyReader(directory / f"staged.{name}.npy") for name in names}
    for start in range(0, readers["user"].length, BUCKET_ROWS):
        block = slice(start, start + BUCKET_ROWS)
        rows = {"user": user_of[readers["user"][block]], "item": item_of[readers["item"][block]]}
        kept = (rows["user"] >= 0) & (rows["item"] >= 0)
        rows |= {name: readers[name][block] for name in names[2:]}
        buckets.add({name: column[kept] for name, column in rows.items()})
    for reader in readers.values():
        reader.close()


def _merge(rows: NDArray[Any], duplicates: str) -> tuple[NDArray[np.int32], dict[str, NDArray[Any]]]:
    """Merge repeated pairs in sorted rows, and take the last time of each pair."""
    import numpy as np

    first = np.ones(len(rows), bool)
    first[1:] = (rows["user"][1:] != rows["user"][:-1]) | (rows["item"][1:] != rows["item"][:-1])
    starts = np.flatnonzero(first)
    columns = {"items": rows["item"][starts]}
    if "time" in (rows.dtype.names or ()):
        columns["times"] = np.maximum.reduceat(rows["time"], starts)
    if duplicates == "once":
        columns["values"] = np.ones(len(starts), np.float32)
    elif duplicates == "last":
        lengths = np.diff(np.append(starts, len(rows)))
        latest = rows["time"] == np.repeat(columns["times"], lengths)
        # Of equal times the row that was read last, which the stable order has last.
        place = np.maximum.reduceat(np.where(latest, np.arange(len(rows)), -1), starts)
        columns["values"] = rows["value"][place]
    else:
        with np.errstate(over="ignore"):
            columns["values"] = np.add.reduceat(rows["value"], starts)
    if not np.isfinite(columns["values"]).all():
        raise BadInput("values of one user and item add up to more than 3.4e38", public="value out of range")
    return rows["user"][starts], columns
