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


def write(sources: tuple[Source, ...], model: Path, directory: Path) -> TestPairs:
    """Write the pairs as ``heldout.*.npy`` into ``directory``.

    Parameters
    ----------
    sources
        Test files.
    model
        A model folder.
    directory
        Folder for the files.

    Raises
    ------
    BadInput
        As ``readers.batches``, or none of the users is in the model.
    """
    import numpy as np

    ids = {name: _ids(model / f"{name}s.parquet") for name in ("user", "item")}
    pairs: list[NDArray[np.int64]] = []
    unknown_users = unknown_items = 0
    for source in sources:
        names = [str(source.columns.user), str(source.columns.item)]
        for batch in readers.batches(source, names):
            user, item = _rows(batch.column(0), ids["user"]), _rows(batch.column(1), ids["item"])
            unknown_users += int((user < 0).sum())
            missing = (item < 0) & (user >= 0)
            # Each gets another number, because two equal ones would be counted as one pair.
            item[missing] = UNKNOWN + unknown_items + np.arange(int(missing.sum()))
            unknown_items += int(missing.sum())
            pairs.append(((user << 32) | item)[user >= 0])
    keys = np.unique(np.concatenate(pairs)) if pairs else np.zeros(0, np.int64)
    if not len(keys):
        raise BadInput(f"{sources[0].path}: none of its users is in the model", public="no known user in the test")
    users, items = keys >> 32, (keys & 0xFFFFFFFF).astype(np.int32)
    firsts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])

    def chosen() -> Iterator[tuple[int, NDArray[Any]]]:
        for start, user_items in zip(firsts, np.split(items, firsts[1:]), strict=True):
            yield int(users[start]), user_items

    return TestPairs(splits.write(directory, "heldout", chosen()), len(keys), unknown_users, unknown_items)


def _ids(path: Path) -> Any:
    return arrow_numpy.read_parquet(path).combine_chunks()["id"].chunk(0)


def _rows(column: Any, ids: Any) -> NDArray[np.int64]:
    """Rows of ids, -1 for those that are not in the model."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.type != ids.type:
        # Text that is not an integer cannot be one of the model's integers.
        if pa.types.is_integer(ids.type) and pa.types.is_string(column.type):
            plain = pc.match_substring_regex(column, r"^(0|-?[1-9][0-9]{0,17})$")
            column = pc.if_else(plain, column, arrow_numpy.text([None])[0])
        column = pc.cast(column, ids.type)
    rows = pc.index_in(column, ids)
    return np.where(arrow_numpy.valid(rows), arrow_numpy.values(rows), -1).astype(np.int64)


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
    with readers.open_text(path) as stream:
        for number, line in enumerate(stream, 1):
            pair, *negatives = line.split("\t")
            user, comma, item = pair.strip().removeprefix("(").removesuffix(")").partition(",")
            if not comma or not negatives:
                raise BadInput(
                    f"{path}: line {number}: expected (user,item), then items, separated by tabs",
                    public="negatives unreadable",
                )
            yield user.strip(), [item.strip(), *(negative.strip() for negative in negatives)]
