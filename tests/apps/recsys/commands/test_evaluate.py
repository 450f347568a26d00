"""Published test files and NCF's sampled negatives: which rows they become, and the figures by hand."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from apps.recsys.commands import evaluate
from apps.recsys.data import arrow_numpy, readers, splits, test_files
from apps.recsys.data.csr_store import History, NpyWriter
from apps.recsys.data.id_table import write_table
from apps.recsys.data.splits import HeldOut, hold_out
from apps.recsys.models import weights
from common.errors import BadInput
from tests.messages import refused

MANIFEST = {"kind": "popularity", "hyper": {}, "cosine": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model by popularity of users 10, 11, 12 and items a to f, the first the best; everybody had ``a``."""
    write_table(tmp_path / "users.parquet", [arrow_numpy.numbers(np.array([10, 11, 12]))])
    write_table(tmp_path / "items.parquet", [arrow_numpy.text("abcdef")])
    weights.write(tmp_path / weights.WEIGHTS, {weights.ITEMS: np.arange(6, 0, -1, dtype=np.float32)[:, None]})
    for name, kind, values in (
        ("indptr", "<i8", [0, 1, 2, 3]),
        ("items", "<i4", [0, 0, 0]),
        ("values", "<f4", [1, 1, 1]),
    ):
        with NpyWriter(tmp_path / f"history.{name}.npy", kind) as out:
            out.append(np.array(values))
    return tmp_path


def test_a_test_file_becomes_rows(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text("user,item\n12,f\n10,b\n10,zz\n99,a\n10,b\n10,yy\nx,a\n012,a\n")
    out = tmp_path / "out"
    out.mkdir()
    found = test_files.write((readers.open_source(path, readers.Columns()),), folder, out)
    assert found == test_files.TestPairs(users=2, pairs=4, unknown_users=3, unknown_items=2, rows=8)
    heldout = HeldOut(out)
    assert heldout.users.tolist() == [0, 2]
    assert (
        heldout.items(0)[0] == 1 and len(heldout.items(0)) == 3 and (heldout.items(0)[1:] >= test_files.UNKNOWN).all()
    )
    assert heldout.items(1).tolist() == [5]
    path.write_text("user,item\n98,f\n99,b\n")
    with refused(BadInput, path, "users"):
        test_files.write((readers.open_source(path, readers.Columns()),), folder, out)


def session() -> SimpleNamespace:
    """The parts of a session that ranking needs."""

    class Bar:
        def update(self, count: int) -> None:
            """Not drawn."""

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to close."""

    return SimpleNamespace(
        say=lambda line: None, progress=lambda **_: Bar(), stopping=False, plan={"user_block": 2}, threads=1
    )


def test_recall_of_a_test_file_by_both_definitions(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text("user,item\n" + "".join(f"10,{item}\n" for item in ("b", *(f"z{n}" for n in range(24)))) + "12,f\n")
    out = tmp_path / "out"
    out.mkdir()
    test_files.write((readers.open_source(path, readers.Columns()),), folder, out)
    # What a user had is not shown: b to f are, so user 10 is shown one of its 25 items and user 12 its only one.
    for plain, recall in ((False, (1 / 20 + 1) / 2), (True, (1 / 25 + 1) / 2)):
        tally = evaluate.score(session(), folder, MANIFEST, heldout=out, trained_on_all=True, plain_recall=plain)
        assert tally.means()["recall@20"] == pytest.approx(recall)
    assert tally.means()["coverage@10"] == 5 / 6
    assert tally.means()["mrr@10"] == pytest.approx((1 + 1 / 5) / 2)


def test_sampled_negatives(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "negatives"
    path.write_text("(12,c)\td\tb\tf\tzz\n(10,b)\td\te\tf\n(77,b)\td\n(11,zz)\tf\n")
    out = tmp_path / "out"
    out.mkdir()
    assert test_files.write_candidates(path, folder, out) == test_files.TestPairs(3, 11, 1, 2)
    found = evaluate.among_candidates(session(), folder, MANIFEST, out)
    # b is first, c second to b; an item that the model does not have is behind everything
    assert found["hr@10"] == 1.0
    assert found["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(3)) / 3)
    path.write_text("(12,c) d b f\n")
    with refused(BadInput, path, "line 1"):
        test_files.write_candidates(path, folder, out)


def test_a_random_split_scores_a_fifth_of_everybody(tmp_path: Path) -> None:
    with NpyWriter(tmp_path / "history.indptr.npy", "<i8") as out:
        out.append(np.array([0, 10, 13, 18]))
    with NpyWriter(tmp_path / "history.items.npy", "<i4") as out:
        out.append(np.concatenate([np.arange(10), np.arange(3), np.arange(5)]))
    assert hold_out(tmp_path, "random", seed=4) == 2
    heldout = HeldOut(tmp_path)
    assert heldout.users.tolist() == [0, 2] and [len(heldout.items(row)) for row in range(2)] == [2, 1]
    kept = splits.Kept(History(tmp_path), heldout, whole_users=False).mask(0, 3)
    assert kept.sum() == 15


@pytest.mark.parametrize("sampled", [1 << 20, 100])
def test_a_temporal_split_scores_what_came_after_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: int
) -> None:
    monkeypatch.setattr(splits, "SAMPLED_TIMES", sampled)
    monkeypatch.setattr(splits, "BLOCK", 64)
    random = np.random.default_rng(0)
    had = [np.sort(random.choice(60, random.integers(1, 30), replace=False)) for _ in range(50)]
    when = [random.uniform(0, 1000, len(items)) for items in had]
    when[7][:] = 999.5  # came only at the end
    with NpyWriter(tmp_path / "history.indptr.npy", "<i8") as out:
        out.append(np.concatenate([[0], np.cumsum([len(items) for items in had])]))
    for name, kind, values in (("items", "<i4", had), ("times", "<f8", when)):
        with NpyWriter(tmp_path / f"history.{name}.npy", kind) as out:
            out.append(np.concatenate(values))
    users = splits.hold_out(tmp_path, "temporal", seed=0)
    heldout = splits.HeldOut(tmp_path)
    scored = {int(user): set(heldout.items(row).tolist()) for row, user in enumerate(heldout.users)}
    assert len(scored) == users and scored[7] == set(had[7].tolist())
    times = [
        (time, item in scored.get(user, set()))
        for user in range(50)
        for item, time in zip(had[user], when[user], strict=True)
    ]
    first_scored, last_known = min(time for time, held in times if held), max(time for time, held in times if not held)
    assert last_known < first_scored
    assert heldout.size == pytest.approx(0.2 * len(times), abs=2 if sampled > 1000 else 0.05 * len(times))


def test_a_test_file_counts_the_rows_that_training_counts(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text("user,item,rating\n10,b,5\n10,c,0\n10,,4\n,b,4\n11,d,2\n11,e,\n12,f,3\n")
    out = tmp_path / "out"
    out.mkdir()
    source = readers.open_source(path, readers.Columns())
    found = test_files.write((source,), folder, out)
    assert (found.users, found.pairs, dict(found.dropped)) == (3, 3, {"with an empty cell": 3, "of value 0 or less": 1})
    found = test_files.write((source,), folder, out, min_value=3)
    assert (found.users, found.pairs) == (2, 2)
    assert dict(found.dropped) == {"with an empty cell": 3, "below the model's --min-value": 2}
    path.write_text("user,item,rating\n10,b,0\n")
    with refused(BadInput, path, "1 rows", "value 0"):
        test_files.write((source,), folder, out)


def test_pairs_of_the_training_are_counted(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text("user,item\n10,a\n10,b\n11,a\n")
    out = tmp_path / "out"
    out.mkdir()
    test_files.write((readers.open_source(path, readers.Columns()),), folder, out)
    found: dict[str, int] = {}
    evaluate.score(session(), folder, MANIFEST, heldout=out, trained_on_all=True, found=found)
    assert found == {"new_users": 0, "trained": 2}


def test_users_without_a_history_are_shown_popular_items(folder: Path) -> None:
    """User 12's only item is held out; the others had ``f``, which the model itself ranks last."""
    for name, kind, values in (
        ("indptr", "<i8", [0, 1, 2, 3]),
        ("items", "<i4", [5, 5, 4]),
        ("values", "<f4", [1] * 3),
    ):
        with NpyWriter(folder / f"history.{name}.npy", kind) as out:
            out.append(np.array(values))
    splits.write(folder, "heldout", [(2, np.array([4]))])
    seen = []
    found: dict[str, int] = {}

    class Watched(evaluate.Tally):
        def add_all(self, rankings: Sequence[np.ndarray], scored: Sequence[np.ndarray]) -> None:
            seen.extend(ranking.tolist() for ranking in rankings)
            super().add_all(rankings, scored)

    original, evaluate.Tally = evaluate.Tally, Watched
    try:
        evaluate.score(session(), folder, {**MANIFEST, "split": "temporal"}, heldout=folder, found=found)
    finally:
        evaluate.Tally = original
    assert seen[0][0] == 5 and found == {"new_users": 1}
