"""Read published test files for ``recsys evaluate --test`` and ``--negatives``.

Users that are not in the model are left out and counted. Items that are not in the model are kept: they can never be
recommended, so they count as missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import arrow_numpy, readers, splits
from apps.recsys.data.formats import kinds
from apps.recsys.data.formats.unpacked import open_text
from apps.recsys.data.readers import Source
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNKNOWN = 1 << 30
"""Number of the first item that is not in the model: larger than any row."""


@dataclass(frozen=True, slots=True)
class TestPairs:
    """Sizes of test files, as rows of a model."""

    users: int
    """Users of the model with an item to score."""
    pairs: int
    """Pairs of these users, or items in the lines of ``--negatives``."""
    unknown_users: int
    """Rows whose user is not in the model."""
    unknown_items: int
    """Rows whose item is not in the model."""
    rows: int = 0
    """Rows read."""
    dropped: tuple[tuple[str, int], ...] = ()
    """Reasons for which rows were left out as in training, each with their number."""


def write(sources: tuple[Source, ...], model: Path, directory: Path, *, min_value: float | None = None) -> TestPairs:
    """Write the pairs as ``heldout.*.npy`` into ``directory``: those of the rows that a training would count.

    Parameters
    ----------
    sources
        Test files.
    model
        A model folder.
    directory
        Folder for the files.
    min_value
        The least value of a row that the model was trained on; ``None``: any above 0.

    Raises
    ------
    BadInput
        As ``readers.batches``, or none of the users is in the model.
    """
    import numpy as np

    ids = {name: _ids(model / f"{name}s.parquet") for name in ("user", "item")}
    pairs: list[NDArray[np.int64]] = []
    unknown_users = unknown_items = 0
    rows, dropped = 0, dict[str, int]()
    for source in sources:
        value = source.columns.value
        names = [str(name) for name in (source.columns.user, source.columns.item, value) if name is not None]
        for batch in readers.batches(source, names, number=value):
            rows += batch.num_rows
            counted = _counted(batch, min_value, dropped)
            user, item = (_rows(batch.column(n), ids[name])[counted] for n, name in enumerate(("user", "item")))
            unknown_users += int((user < 0).sum())
            missing = (item < 0) & (user >= 0)
            # Each gets another number, because two equal ones would be counted as one pair.
            item[missing] = UNKNOWN + unknown_items + np.arange(int(missing.sum()))
            unknown_items += int(missing.sum())
            pairs.append(((user << 32) | item)[user >= 0])
    keys = np.unique(np.concatenate(pairs)) if pairs else np.zeros(0, np.int64)
    if not len(keys):
        left_out = ", ".join(f"{rows:,} rows {why}" for why, rows in dropped.items())
        raise BadInput(
            f"{sources[0].path}: none of its users is in the model{f' (dropped: {left_out})' if dropped else ''}",
            public="no known user in the test",
        )
    users, items = keys >> 32, (keys & 0xFFFFFFFF).astype(np.int32)
    firsts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])

    def chosen() -> Iterator[tuple[int, NDArray[Any]]]:
        for start, user_items in zip(firsts, np.split(items, firsts[1:]), strict=True):
            yield int(users[start]), user_items

    users_written = splits.write(directory, "heldout", chosen())
    return TestPairs(users_written, len(keys), unknown_users, unknown_items, rows, tuple(dropped.items()))


def _counted(batch: Any, min_value: float | None, dropped: dict[str, int]) -> NDArray[np.bool_]:
    """Mask of the rows that a training would count; the others are added to ``dropped``."""
    import numpy as np

    good = kinds.present(batch.column(0)) & kinds.present(batch.column(1))
    value = arrow_numpy.floats(batch.column(2)) if batch.num_columns > 2 else np.ones(batch.num_rows)
    good &= ~np.isnan(value)
    small = good & (value < min_value if min_value is not None else value <= 0)
    small_why = "below the model's --min-value" if min_value is not None else "of value 0 or less"
    for why, rows in (("with an empty cell", int((~good).sum())), (small_why, int(small.sum()))):
        if rows:
            dropped[why] = dropped.get(why, 0) + rows
    return good & ~small


def _ids(path: Path) -> Any:
    return arrow_numpy.read_parquet(path).combine_chunks()["id"].chunk(0)


def _rows(column: Any, ids: Any) -> NDArray[np.int64]:
    """Rows of ids, -1 for those that are not in the model."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.type != ids.type:
        # Text that is not an integer cannot be one of the model's integers.
        if pa.types.is_integer(ids.type) and not pa.types.is_integer(column.type):
            column = pc.cast(column, pa.string())
            plain = pc.match_substring_regex(column, r"^(0|-?[1-9][0-9]{0,17})$")
            column = pc.if_else(plain, column, arrow_numpy.text([None])[0])
        column = pc.cast(column, ids.type)
    rows = pc.index_in(column, ids)
    return np.where(arrow_numpy.valid(rows), arrow_numpy.values(rows), -1).astype(np.int64)


PLACES = "places.npy"
"""File of ``align``: the place of each user of the first model among those of the second, shape (users,)."""


def align(models: tuple[Path, Path], held_out: tuple[Path, Path], directory: Path, *, same: bool) -> int:
    """Write the items to score of the users whom two models have in common.

    Parameters
    ----------
    models
        Two model folders.
    held_out
        Folders with their ``heldout.*.npy``, by the rows of each model.
    directory
        Gets ``0/heldout.*.npy``, ``1/heldout.*.npy`` and ``PLACES``.
    same
        True to require that of these users the same items are held out.

    Returns
    -------
    int
        Number of users.

    Raises
    ------
    BadInput
        No user is in both, or with ``same`` other items are held out.
    """
    import numpy as np

    first, second = (splits.HeldOut(folder) for folder in held_out)
    users = [_ids(model / "users.parquet") for model in models]
    rows = _rows(users[0].take(arrow_numpy.numbers(first.users)), users[1])
    place = np.searchsorted(second.users, rows)
    found = (rows >= 0) & (place < len(second))
    found[found] = second.users[place[found]] == rows[found]
    if not found.any():
        raise _other_items(models)
    kept, others = np.flatnonzero(found), np.sort(place[found])
    if same:
        items = [_ids(model / "items.parquet") for model in models]
        for row, other in zip(kept, place[found], strict=True):
            mine = _rows(items[0].take(arrow_numpy.numbers(first.items(int(row)))), items[1])
            if not np.array_equal(np.sort(mine), second.items(int(other))):
                raise _other_items(models)
    for number, (held, some) in enumerate(((first, kept), (second, others))):
        folder = directory / str(number)
        folder.mkdir()
        splits.write(folder, "heldout", ((int(held.users[row]), held.items(int(row))) for row in some))
    np.save(directory / PLACES, np.searchsorted(others, place[found]))
    return len(kept)


def _other_items(models: tuple[Path, Path]) -> BadInput:
    return BadInput(
        f"{models[0]} and {models[1]} were not held out the same items of the same users (other data, split or seed):"
        " compare them on a file that neither was trained on, with --test",
        public="other held-out items",
    )


def write_candidates(path: Path, model: Path, directory: Path) -> TestPairs:
    """Write NCF's file as ``heldout.*.npy``, one positive item per user, and ``others.*.npy``, its negatives.

    Parameters
    ----------
    path
        NCF's file.
    model
        A model folder.
    directory
        Folder for the files.

    Raises
    ------
    BadInput
        A line is not ``(user,item)<tab>item<tab>item ...``, or none of the users is in the model.
    """
    ids = {name: _ids(model / f"{name}s.parquet") for name in ("user", "item")}
    lines: dict[int, NDArray[np.int64]] = {}
    unknown_users = unknown_items = 0
    for user, items in _candidates(path):
        row = int(_rows(arrow_numpy.text([user]), ids["user"])[0])
        unknown_users += row < 0
        if row < 0:
            continue
        line = _rows(arrow_numpy.text(items), ids["item"])
        unknown_items += int((line < 0).sum())
        line[line < 0] = UNKNOWN
        lines[row] = line
    if not lines:
        raise BadInput(f"{path}: none of its users is in the model", public="no known user in the test")
    splits.write(directory, "others", ((row, lines[row][1:]) for row in sorted(lines)))
    users = splits.write(directory, "heldout", ((row, lines[row][:1]) for row in sorted(lines)))
    return TestPairs(users, sum(map(len, lines.values())), unknown_users, unknown_items)


def _candidates(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the user and the items of each line, the positive item first."""
    with open_text(path) as stream:
        for number, line in enumerate(stream, 1):
            pair, *negatives = line.split("\t")
            user, comma, item = pair.strip().removeprefix("(").removesuffix(")").partition(",")
            if not comma or not negatives:
                raise BadInput(
                    f"{path}: line {number}: expected (user,item), then items, separated by tabs",
                    public="negatives unreadable",
                )
            yield user.strip(), [item.strip(), *(negative.strip() for negative in negatives)]
