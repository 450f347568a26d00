"""Popularity in a window: counts against a plain loop, units, times that are no seconds, and what needs times."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.data import ingest
from apps.recsys.data.columns import Columns
from apps.recsys.data.csr_store import History, NpyReader
from apps.recsys.data.splits import HeldOut, Kept
from apps.recsys.data.staging import Filters
from apps.recsys.models import popularity, weights
from apps.recsys.models.popularity import fit_window, window_seconds
from apps.recsys.models.recommender import Recommender, load_manifest
from apps.recsys.planning.train import SORT_BYTES, TrainWorkload
from apps.recsys.serving.service import RecommenderService
from common.errors import BadInput, UsageError
from tests.apps.recsys.asked import train_request
from tests.messages import refused, says

DAY = 86_400
NEWEST = 1_700_000_000


def rows(seed: int = 4) -> list[tuple[int, int, int]]:
    """A user, an item and a time within 20 days up to ``NEWEST``, some pairs more than once."""
    random = np.random.default_rng(seed)
    found = [(int(u), int(i), NEWEST - int(t)) for u, i, t in random.integers(0, (30, 12, 20 * DAY), (400, 3))]
    return [*found, (0, 0, NEWEST), (1, 3, NEWEST - 7 * DAY), (2, 4, NEWEST - 7 * DAY - 1)]


def read(folder: Path, some: Any, split: str = "none") -> ingest.Facts:
    """Read rows as a training with a window does."""
    with (folder / "t.csv").open("w") as stream:
        csv.writer(stream).writerows([("user", "item", "timestamp"), *some])
    inputs = ingest.open_inputs([folder / "t.csv"], Columns(), None, Filters(), split, 0, needs_times="--set window=7d")
    return ingest.ingest(inputs, folder)


def expected(some: Any, since: float, items: list[int]) -> list[float]:
    """Share of all users who had an item since a time."""
    recent = {(user, item) for user, item, time in some if time >= since}
    return [sum(one == item for _, one in recent) / len({user for user, _, _ in some}) for item in items]


@pytest.mark.parametrize(("scale", "unit"), [(1, ""), (1000, "milliseconds"), (10**6, "microseconds")])
@pytest.mark.parametrize("window", ["7d", "12h", "2w", "100w"])
def test_users_of_the_window_are_counted(tmp_path: Path, scale: int, unit: str, window: str) -> None:
    some = [(user, item, time * scale) for user, item, time in rows()]
    facts = read(tmp_path, some)
    history, said = History(tmp_path), []
    kept = Kept.of(history, tmp_path, "none")
    seconds = window_seconds(window)
    assert seconds is not None
    times = NpyReader(tmp_path / "history.times.npy")
    shares = fit_window(history, kept, times, seconds, items=facts.items, say=said.append)
    items = list(dict.fromkeys(item for _, item, _ in some))  # rows are in the order of their first appearance
    assert shares.dtype == np.float32 and shares.shape == (12, 1)
    np.testing.assert_allclose(shares[:, 0], expected(some, (NEWEST - seconds) * scale, items), rtol=1e-6)
    counted = round(float(shares.sum()) * facts.users)
    says(said[0], f"{counted:,} of {facts.interactions:,}", "2023-11-14 22:13", *([unit] if unit else []))
    if window == "100w":
        np.testing.assert_array_equal(shares, popularity.fit(history, kept, items=facts.items))


def test_the_window_ends_with_what_is_trained_on(tmp_path: Path) -> None:
    """With a split by time the newest interactions are not seen."""
    some = rows()
    facts = read(tmp_path, some, "temporal")
    history, said = History(tmp_path), []
    kept = Kept.of(history, tmp_path, "temporal")
    times = NpyReader(tmp_path / "history.times.npy")
    shares = fit_window(history, kept, times, 2.0 * DAY, items=facts.items, say=said.append)
    mask, when = kept.mask(0, history.rows), times[:]
    assert 0 < facts.scored_items == (~mask).sum() == HeldOut(tmp_path).size
    newest = when[mask].max()
    recent = history.items(0, history.rows)[mask & (when >= newest - 2 * DAY)]
    np.testing.assert_allclose(shares[:, 0], np.bincount(recent, minlength=facts.items) / facts.users, rtol=1e-6)
    assert newest < NEWEST and f"{len(recent):,} of {int(mask.sum()):,}" in said[0]


@pytest.mark.parametrize(
    "text", ["", "7", "d", "7 d", "-7d", "0d", "0.0h", "7m", "1e3d", "7D", "infd", "nand", "٧d", "7d7d"]
)
def test_what_is_no_window(text: str) -> None:
    with refused(UsageError, "--set", "window", "12h", "7d", "2w"):
        train_request("--model", "popularity", "--set", f"window={text}")


def test_units() -> None:
    assert [window_seconds(text) for text in ("1h", "2.5d", "3w", "all")] == [3600, 216_000, 1_814_400, None]
    request = train_request("--model", "popularity", "--set", "window=7d")
    assert request.model.hyper == {"window": "7d"} and request.data.needs_times == "--set window=7d"
    assert train_request("--model", "popularity").data.needs_times == ""
    assert train_request("--split", "temporal").data.needs_times == ""
    with refused(UsageError, "window", "--model embedding or popularity", "linear"):
        train_request("--set", "window=7d")


def test_it_needs_times(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("user,item\n1,2\n2,1\n")
    with refused(BadInput, "t.csv", "--set window=7d", "--time-col", "user, item") as caught:
        ingest.open_inputs([tmp_path / "t.csv"], Columns(), None, Filters(), "none", 0, needs_times="--set window=7d")
    assert "\n" not in str(caught.value)
    facts = read(tmp_path, [(1, 1, 5), (1, 2, "inf"), (2, 1, 7)])
    history = History(tmp_path)
    times = NpyReader(tmp_path / "history.times.npy")
    with refused(BadInput, "window", "inf"):
        fit_window(history, Kept.of(history, tmp_path, "none"), times, 3.0, items=facts.items, say=print)


def test_sorting_with_times_is_priced() -> None:
    facts = ingest.Facts(
        rows=10**6, users=10**4, items=10**3, interactions=10**6, longest=900, ids=11_000, bucket=2**18
    )
    plain, timed = (
        {
            term.name: term.bytes
            for term in TrainWorkload(train_request("--model", "popularity", *extra), facts).input_terms()
        }
        for extra in ((), ("--set", "window=7d"))
    )
    assert timed["rows sorted"] - plain["rows sorted"] == (SORT_BYTES[True] - SORT_BYTES[False]) * facts.bucket


def test_on_the_command_line(tmp_path: Path, quick: Any) -> None:
    """The folder has no times; a user without a history is shown the window's items, too."""
    read(tmp_path, rows())
    model = tmp_path / "model"
    options = ("--model", "popularity", "--set", "window=3d", "--split", "temporal", "--memory", "250MiB", "--json")
    done = quick("apps.recsys", "train", tmp_path / "t.csv", "-o", model, *options)
    assert done.code == 0, done.err
    says(done.err, "window:", "interactions are counted")
    manifest = load_manifest(model)
    assert manifest["hyper"] == {"window": "3d"} and "window=3d" in (model / "card.md").read_text()
    assert not list(model.glob("*times*")) and done.record["results"]["metrics"]["ndcg@10"] > 0
    service, shares = RecommenderService(model, manifest), weights.read(model / weights.WEIGHTS)[:, 0]
    numbers = np.rint(shares * manifest["users"])
    order = np.lexsort((np.arange(len(numbers)), -numbers))[:5]
    assert list(service.popular(5).best) == [(int(row), float(numbers[row])) for row in order]
    recommender = Recommender(model, manifest)
    assert (
        recommender.recent_shares is not None
        and 0
        < shares.sum()
        < popularity.fit(recommender.history, Kept.of(recommender.history, model, "temporal"), items=len(shares)).sum()
    )
