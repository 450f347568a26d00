"""From input files to the files of a model folder: read, filter, split.

This runs before planning, because the plan needs the exact sizes. Its own memory is bounded by the modules that it
uses, limited by a wall, and priced in the plan's first phase.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import arrow_numpy, readers, splits, staging
from apps.recsys.data.attributes.collect import (
    ENTRY_BYTES,
    ITEM_BYTES,
    LINE_BYTES,
    SEPARATOR,
    TEXT_BYTES,
    VALUE_BYTES,
    Carried,
    Collected,
    collect,
)
from apps.recsys.data.attributes.stored import Attribute
from apps.recsys.data.columns import choose_attributes
from apps.recsys.data.csr_store import History
from apps.recsys.data.formats import kinds
from apps.recsys.data.formats.lines import json_object
from apps.recsys.data.formats.paths import expanded
from apps.recsys.data.formats.unpacked import open_text
from apps.recsys.data.headers import JSON
from apps.recsys.data.id_index import EMPTY, Vocabulary
from apps.recsys.data.id_table import write_table
from apps.recsys.data.readers import Source
from apps.recsys.data.staging import Filters
from apps.recsys.data.updates.base import Base
from common.errors import BadInput
from common.files import Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TITLE_BYTES, TITLE_TIMES = 96, 2
"""Memory of an item's title while titles are read, besides its text: an object of Python and its place; and copies of
all texts."""
ATTRIBUTE_BYTES = LINE_BYTES + ITEM_BYTES + VALUE_BYTES + ENTRY_BYTES
"""Memory of a line of the table of items while one of its columns is read, at most."""
PACKED_TIMES = 20
"""Memory of a table in Parquet or Arrow by its size, where it could not be read: a guess, for a refusal."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Sizes of the data."""

    rows: int
    """Rows read."""
    users: int
    """Users after the filters."""
    items: int
    """Items after the filters."""
    interactions: int
    """Distinct pairs of user and item."""
    longest: int
    """The largest number of items of one user."""
    ids: int
    """Distinct ids before the filters: those in memory while reading."""
    bucket: int
    """Rows of the largest bucket that was sorted (``external_sort``)."""
    dropped: tuple[tuple[str, int], ...] = ()
    """Reasons for which rows were left out, each with their number."""
    scored_users: int = 0
    """Users with held-out items."""
    scored_items: int = 0
    """Held-out interactions of all users."""
    scored_longest: int = 0
    """The largest number of items of one user with held-out items."""
    held_interactions: int = 0
    """Interactions that training does not see."""
    titled: int = 0
    """Items with a title."""
    attributes: tuple[Attribute, ...] = ()
    """Attributes of the items, as ``model.json`` describes them."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Columns of the items' table that are no attributes, each with the reason."""
    describing: int = 0
    """Memory of titles and attributes while they are read, by their sizes."""
    new_users: int = 0
    """Users to score of whom training sees nothing, in a split by time."""
    repeated: int = 0
    """Rows beyond the first of each pair."""
    forgotten: int = 0
    """Interactions of a model's forgotten users."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Input files with checked headers, and how they are read."""

    sources: tuple[Source, ...]
    titles: tuple[Source, str] | None
    filters: Filters
    split: str
    seed: int
    duplicates: str = "sum"
    """What repeated rows of a pair count, one of ``staging.DUPLICATES``."""
    attributes: tuple[str, ...] = ()
    """Columns of the table of titles that become attributes."""
    needs_times: str = ""
    """The option that needs times, which are then kept as ``history.times.npy``; empty: only a split may use them."""
    base: Base | None = None
    """The model that the rows are added to."""

    @property
    def timed(self) -> bool:
        """As ``splits.reads_times``; what is added to a model is not split."""
        return splits.reads_times("none" if self.base else self.split, self.duplicates, self.needs_times)


def workspace(output: Path) -> Workspace:
    """Make a scratch folder in the nearest existing parent of the output."""
    return Workspace(next(parent for parent in output.absolute().parents if parent.is_dir()), output.name)


def ingest(inputs: Inputs, directory: Path) -> Facts:
    """Write history, ids, titles and held-out items into ``directory``.

    Raises
    ------
    BadInput
        As ``staging.stage`` and ``splits.hold_out``.
    """
    timed, base = inputs.timed, inputs.base
    users, items = Vocabulary(directory, "user"), Vocabulary(directory, "item")
    staged = staging.stage(inputs.sources, directory, users, items, filters=inputs.filters, timed=timed, base=base)
    assert staged.user_rows is not None and staged.item_rows is not None
    ids = len(users) + len(items)
    write_table(directory / "users.parquet", users.ids(staged.user_rows > 0))
    kept = staged.item_rows > 0
    titles = _titles(inputs, items, kept)
    titled = 0 if titles is None else len(titles) - titles.null_count
    describing = 0 if titles is None else TITLE_BYTES * len(kept) + TITLE_TIMES * titles.nbytes
    write_table(directory / "items.parquet", items.ids(kept), titles)
    del titles
    collected = _attributes(inputs, items, kept, directory)
    users.close()
    items.close()
    del users, items, kept
    if base is not None:
        base.write_kept(directory, staged.item_rows)
    sizes = staging.build(staged, directory, timed=timed, duplicates=inputs.duplicates)
    held_out = _hold_out(inputs, directory, staged) if inputs.split != "none" else {}
    if not inputs.needs_times:
        (directory / "history.times.npy").unlink(missing_ok=True)
    return Facts(
        rows=staged.rows,
        ids=ids,
        bucket=staged.largest_bucket,
        dropped=tuple(staged.dropped.items()),
        titled=titled,
        repeated=staged.kept - sizes["interactions"],
        forgotten=staged.forgotten,
        attributes=tuple(collected.attributes),
        left_out=tuple(collected.left_out),
        describing=max(describing, collected.bytes),
        **sizes,
        **held_out,
    )


def _hold_out(inputs: Inputs, directory: Path, staged: staging.Staged) -> dict[str, int]:
    """Write the held-out items; returns their sizes by their names in ``Facts``."""
    import numpy as np

    if inputs.base is None:
        users = splits.hold_out(directory, inputs.split, inputs.seed)
    else:
        assert staged.user_rows is not None and staged.item_rows is not None
        rows = staging.renumbered(staged.user_rows), staging.renumbered(staged.item_rows)
        if not (users := inputs.base.write_held_out(directory, *rows)):
            splits.forget(directory, "heldout")
            return {}
    heldout, history = splits.HeldOut(directory), History(directory)
    lengths = np.diff(history.indptr)[heldout.users]
    new_users = int((lengths == heldout.lengths).sum())
    unseen = int(lengths.sum()) if inputs.split == "user-holdout" else heldout.size
    if unseen >= history.size:
        raise BadInput(f"--split {inputs.split}: nothing is left to train on", public="nothing to train on")
    sizes = {"scored_users": users, "scored_items": heldout.size, "scored_longest": int(lengths.max())}
    sizes["new_users"] = new_users
    heldout.close()
    history.close()
    return {**sizes, "held_interactions": unseen}


def _titles(inputs: Inputs, items: Vocabulary, keep: NDArray[np.bool_]) -> Any:
    """Titles of the kept items in their order; ``None`` without a table of titles, and a model that has some."""
    earlier = inputs.base.titles() if inputs.base is not None else []
    if inputs.titles is None and not earlier:
        return None
    by_number: list[str | None] = [*earlier, *[None] * (len(keep) - len(earlier))]
    if inputs.titles is not None:
        source, column = inputs.titles
        for batch in readers.batches(source, [str(source.columns.item), column]):
            for number, title in zip(items.find(batch.column(0)), kinds.texts(batch.column(1)), strict=True):
                if number != EMPTY:
                    by_number[number] = title
    return arrow_numpy.text(title for title, kept in zip(by_number, keep, strict=True) if kept)


def _attributes(inputs: Inputs, items: Vocabulary, keep: NDArray[np.bool_], directory: Path) -> Collected:
    """Write other columns of the table of titles, and what a model has, as attributes of the kept items."""
    source = inputs.titles[0] if inputs.titles is not None else None
    base = inputs.base
    carried = Carried(base.directory, base.attributes) if base is not None and base.attributes else None
    if source is None and carried is None:
        return Collected([], [], 0)
    return collect(source, inputs.attributes, items, keep, directory, carried)


def titled(path: Path | None) -> tuple[tuple[Source, str] | None, tuple[str, ...]]:
    """Check a table of titles: the table with its columns, and the columns that become attributes.

    Raises
    ------
    BadInput
        As ``readers.open_titles``.
    """
    if path is None:
        return None, ()
    table = readers.open_titles(path)
    return table, tuple(choose_attributes(table[0].names, str(table[0].columns.item), table[1]))


def count(inputs: Inputs) -> Facts:
    """Upper bounds of the sizes, found without Arrow: for a ceiling under which Arrow cannot be loaded.

    Filters and splits are not applied, so the true sizes are at most these.

    Raises
    ------
    MemoryError
        A file is Parquet, Arrow or Zstandard, which cannot be read without Arrow.
    """
    users: Counter[str] = Counter()
    items: set[str] = set()
    for source in inputs.sources:
        if source.needs_arrow:
            raise MemoryError
        with open_text(source.path) as stream, suppress(UnicodeDecodeError, EOFError):
            for user, *user_items in _plain_rows(source, stream):
                users[user] += len(user_items)
                items.update(user_items)
    rows, longest = users.total(), max(users.values(), default=0)
    bucket = min(rows, staging.BUCKET_ROWS + longest)  # a bucket ends with a whole user
    ids = len(users) + len(items)
    return Facts(
        rows, len(users), len(items), rows, longest, ids, bucket, describing=_described_at_most(inputs, len(items))
    )


def _described_at_most(inputs: Inputs, items: int) -> int:
    """Memory that titles and attributes take at most, by the size of their table."""
    if inputs.titles is None:
        return 0
    source, _ = inputs.titles
    size = source.path.stat().st_size
    if source.needs_arrow:
        return PACKED_TIMES * size
    entries = 0
    with open_text(source.path) as stream, suppress(UnicodeDecodeError, EOFError):
        entries = sum(1 + line.count(SEPARATOR) for line in stream)
    attributes = bool(inputs.attributes) * (ATTRIBUTE_BYTES * entries + min(size, TEXT_BYTES))
    return max(TITLE_BYTES * items + TITLE_TIMES * size, attributes)


def _plain_rows(source: Source, stream: Any) -> Iterator[list[str]]:
    """Yield a user and its items from each row of a text."""
    if source.lists:
        yield from (line.split() for line in stream if line.strip())
        return
    if source.delimiter == JSON:
        rows = (json_object(source.path, number, line) for number, line in enumerate(stream, 1) if line.strip())
        yield from (
            [str(row.get(str(name)) or "") for name in (source.columns.user, source.columns.item)] for row in rows
        )
        return
    if source.headed:
        next(stream, None)
    lines = (line.replace("::", "\t") for line in stream) if source.delimiter == "::" else stream
    delimiter = "\t" if source.delimiter == "::" else source.delimiter
    for row in csv.DictReader(lines, fieldnames=source.names, delimiter=delimiter):
        yield [row.get(str(source.columns.user)) or "", row.get(str(source.columns.item)) or ""]


def open_inputs(
    paths: Sequence[Path],
    columns: readers.Columns,
    titles: Path | None,
    filters: Filters,
    split: str,
    seed: int,
    layout: readers.Layout = readers.Layout(),
    duplicates: str = "sum",
    needs_times: str = "",
) -> Inputs:
    """Check the headers of all files.

    Parameters
    ----------
    paths
        Files of interactions.
    columns
        Their columns, as far as the user names them.
    titles
        A table of items and titles.
    filters
        Rows, users and items that are left out.
    split, seed
        Way in which evaluation items are held out, and its seed.
    layout
        Layout of text files, as far as the user states it.
    duplicates
        What repeated rows of a pair count, one of ``staging.DUPLICATES``.
    needs_times
        Another option than the split that needs times; empty: none.

    Raises
    ------
    BadInput
        As ``expanded``, ``readers.open_source`` and ``readers.open_titles``; the split or ``timed`` needs times that a
        file lacks.
    """
    sources = tuple(
        readers.open_source(path, columns, layout, partitions=partitions) for path, partitions in expanded(paths)
    )
    untimed = next((source for source in sources if source.columns.time is None), None)
    option = f"--split {split}" if split in splits.TIMED else needs_times
    if option and untimed is not None:
        other = "--split random or user-holdout" if split in splits.TIMED else "no window"
        raise BadInput(
            f"{untimed.path}: {option} needs times, and no column is known as one (it has"
            f" {', '.join(untimed.names)}); name it with --time-col, or take {other}",
            public="no times for the split" if split in splits.TIMED else "no times for the window",
        )
    table, attributes = titled(titles)
    return Inputs(sources, table, filters, split, seed, duplicates, attributes, needs_times)
