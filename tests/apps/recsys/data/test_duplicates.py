"""Repeated rows of a user and an item: the sum of their values, the last of them, or 1."""

from pathlib import Path

import numpy as np
import pytest

from apps.recsys.data import ingest, readers, staging
from apps.recsys.data.csr_store import History

ROWS = [("a", "x", 3, 10), ("a", "x", 5, 5), ("b", "x", 1, 7), ("b", "y", 2, 7), ("b", "y", 4, 7), ("a", "y", 2, 1)]
"""User, item, value, time: the first pair's last row in time is its first; the last pair's times are equal."""


def values(folder: Path, duplicates: str, *, timed: bool = True, splits: str = "none") -> list[float]:
    """Values of (a, x), (a, y), (b, x), (b, y) after reading the rows in two files."""
    header = "user,item,value" + (",time" if timed else "")
    for name, rows in (("1", ROWS[:2]), ("2", ROWS[2:])):
        lines = [",".join(map(str, row if timed else row[:3])) for row in rows]
        (folder / f"{name}.csv").write_text("\n".join([header, *lines]) + "\n")
    paths = [folder / "1.csv", folder / "2.csv"]
    inputs = ingest.open_inputs(
        paths, readers.Columns(), None, staging.Filters(), splits, 0, readers.Layout(), duplicates
    )
    out = folder / "out"
    out.mkdir()
    facts = ingest.ingest(inputs, out)
    assert (facts.rows, facts.interactions, facts.repeated) == (6, 4, 2)
    assert not list(out.glob("*.times.npy"))
    history = History(out)
    np.testing.assert_array_equal(history.items(0, 2), [0, 1, 0, 1])
    found: list[float] = history.values(0, 2).tolist()
    return found


@pytest.mark.parametrize(
    ("duplicates", "timed", "expected"),
    [
        ("sum", True, [8, 2, 1, 6]),
        ("last", True, [3, 2, 1, 4]),
        ("last", False, [5, 2, 1, 4]),
        ("once", True, [1, 1, 1, 1]),
    ],
)
def test_what_repeated_rows_count(tmp_path: Path, duplicates: str, timed: bool, expected: list[float]) -> None:
    assert values(tmp_path, duplicates, timed=timed) == expected


def test_the_last_of_many_rows_in_one_bucket(tmp_path: Path) -> None:
    """Of random repeated rows with few distinct times, the last of the latest, by plain arithmetic."""
    random = np.random.default_rng(0)
    rows = [
        (f"u{u}", f"i{i}", int(v), int(t))
        for u, i, v, t in zip(
            random.integers(9, size=900),
            random.integers(7, size=900),
            random.integers(1, 99, 900),
            random.integers(4, size=900),
            strict=True,
        )
    ]
    (tmp_path / "a.csv").write_text(
        "user,item,value,time\n" + "\n".join(",".join(map(str, row)) for row in rows) + "\n"
    )
    inputs = ingest.open_inputs(
        [tmp_path / "a.csv"], readers.Columns(), None, staging.Filters(), "none", 0, duplicates="last"
    )
    (tmp_path / "out").mkdir()
    ingest.ingest(inputs, tmp_path / "out")
    expected: dict[tuple[str, str], tuple[int, int]] = {}
    for user, item, value, time in rows:
        if time >= expected.get((user, item), (-1, 0))[0]:
            expected[user, item] = (time, value)
    users, items = (list(dict.fromkeys(row[n] for row in rows)) for n in (0, 1))
    history = History(tmp_path / "out")
    found = {
        (users[user], items[item]): value
        for user in range(history.rows)
        for item, value in zip(history.items(user), history.values(user), strict=True)
    }
    assert found == {pair: value for pair, (_, value) in expected.items()}
