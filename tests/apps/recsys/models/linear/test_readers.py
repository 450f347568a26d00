"""One user's scores by the users of his items: exact within the bounds, else by the readers that count most."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.recsys.models.linear import log as log_module
from apps.recsys.models.linear import readers as readers_module
from apps.recsys.models.linear.filter import FilterScorer, linear_scorer
from apps.recsys.models.linear.log import Added, Log
from apps.recsys.models.linear.readers import Readers, ReaderScores, likeness, write_readers
from apps.recsys.models.linear.spectral import Spectrum
from apps.recsys.models.recommender import Recommender, load_manifest
from common.errors import BadInput
from tests.apps.recsys.in_process import done
from tests.apps.recsys.models.linear.test_filter import Matrix, interactions, normalised, stored
from tests.schemas import read_manifest

POWER = 0.3


def opened(directory: Path, dense: Matrix) -> tuple[Log, Readers]:
    """The log of a matrix, and the users of its items."""
    log = stored(directory, dense)
    write_readers(directory, log, log.counts())
    return log, Readers(directory, log)


def expected(dense: Matrix, items: NDArray[Any], users: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Scores by the formula, by all users or by some."""
    some = dense if users is None else dense[users]
    degrees, lengths = np.maximum(dense.sum(0), 1), np.maximum(some.sum(1), 1)
    question = np.zeros(dense.shape[1])
    question[items] = 1
    answer: NDArray[np.float64] = degrees ** (POWER - 0.5) * (
        some.T @ (some @ (degrees ** (-POWER - 0.5) * question) / lengths)
    )
    return answer


@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_the_users_of_each_item_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(readers_module, "CHUNK", chunk)
    monkeypatch.setattr(log_module, "BLOCK_INTERACTIONS", 40)
    dense = interactions(5)
    opened(tmp_path, dense)
    np.testing.assert_array_equal(np.load(tmp_path / "readers.users.npy"), np.nonzero(dense.T)[1])
    np.testing.assert_array_equal(
        np.load(tmp_path / "readers.indptr.npy"), np.concatenate([[0], dense.sum(0).cumsum()])
    )


@pytest.mark.parametrize("powers", [(1.0, 0.5), (0.5, 0.25)])
@pytest.mark.parametrize("spectral", [False, True])
def test_scores_within_the_bounds_are_those_of_all_interactions(
    tmp_path: Path, spectral: bool, powers: tuple[float, float]
) -> None:
    dense = interactions(3)
    log, readers = opened(tmp_path, dense)
    log.user_power = powers[0]
    values, vectors = np.linalg.eigh(normalised(dense))
    few = Spectrum(vectors[:, -5:].astype(np.float32), values[-5:].astype(np.float32)) if spectral else None
    hyper = {"form": "filter", "degree_power": POWER, "item_power": powers[1], "saturation": 2.0}
    scorer = linear_scorer(log, log.counts(), hyper, few, readers)
    by_a_pass = linear_scorer(log, log.counts(), hyper, few)
    for items in (np.flatnonzero(dense[0]), np.array([39, 0]), np.arange(40), np.arange(0)):
        history = items, np.ones(len(items), np.float32)
        (whole,) = by_a_pass.scores([history], by_a_pass.workspace(1))
        np.testing.assert_allclose(scorer.scores([history], scorer.workspace(2))[0], whole, rtol=2e-5, atol=1e-6)
        rows = np.array([3, 0, 39])
        np.testing.assert_allclose(scorer.contributions(*history, rows).sum(1), whole[rows], rtol=2e-5, atol=1e-6)


def test_beyond_the_bounds_the_readers_count_that_add_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = interactions(8)
    log, readers = opened(tmp_path, dense)
    degrees = np.maximum(dense.sum(0), 1)
    items = np.flatnonzero(dense[2])
    value = dense[:, items] @ degrees[items] ** (-POWER - 0.5) / np.sqrt(np.maximum(dense.sum(1), 1))
    scores = ReaderScores(readers, log.counts().astype(np.float32).clip(1), np.float32(POWER))
    for kept in (1, 4):
        monkeypatch.setattr(readers_module, "KEPT", kept)
        best = np.argsort(-value)[:kept]
        np.testing.assert_allclose(
            scores.scores(items, np.empty(dense.shape[1], np.float32)),
            expected(dense, items, best),
            rtol=2e-5,
            atol=1e-7,
        )
        rows = np.arange(40)
        parts = scores.parts(items, rows)
        np.testing.assert_allclose(parts.sum(1), expected(dense, items, best), rtol=2e-5, atol=1e-7)
        for place, item in enumerate(items):
            alone = expected(dense, items[place : place + 1], best)
            np.testing.assert_allclose(parts[:, place], alone, rtol=2e-5, atol=1e-7, err_msg=str(item))
    monkeypatch.setattr(readers_module, "KEPT", 2000)
    monkeypatch.setattr(readers_module, "PRODUCTS", int(dense.sum(1)[np.argsort(-value)[:3]].sum()))
    best = np.argsort(-value)[:3]
    np.testing.assert_allclose(
        scores.scores(items, np.empty(dense.shape[1], np.float32)), expected(dense, items, best), rtol=2e-5, atol=1e-7
    )


def test_users_of_popular_items_are_sampled_at_even_distances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = interactions(9)
    log, readers = opened(tmp_path, dense)
    monkeypatch.setattr(readers_module, "READ", 12)
    items = np.array([0, 1, 30])
    shared = readers.shared(items, np.ones(3, np.float32))
    lists = [np.flatnonzero(dense[:, item]) for item in items]
    assert not shared.exact and len(shared.items) <= 12 < sum(map(len, lists))
    for place, users in enumerate(lists):
        step = -(-len(users) // readers_module._level(np.array([len(some) for some in lists]), 12))
        np.testing.assert_array_equal(np.sort(shared.users[shared.owners[shared.items == place]]), users[::step])
        assert shared.scales[place] == pytest.approx(len(users) / len(users[::step]))
    np.testing.assert_allclose(shared.weights.sum(), sum(map(len, lists)))
    # All of them, in parts: some of a single item.
    scores = ReaderScores(readers, log.counts().astype(np.float32).clip(1), np.float32(POWER))
    monkeypatch.setattr(readers_module, "PRODUCTS", 9)
    bounded, every = scores.compared(items)
    assert every is not None and not np.allclose(bounded, every, rtol=1e-2)
    np.testing.assert_allclose(every, expected(dense, items), rtol=2e-5, atol=1e-7)


def test_what_the_bounds_change_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = interactions(4, users=300, items=60)
    log, readers = opened(tmp_path, dense)
    scores = ReaderScores(readers, log.counts().astype(np.float32).clip(1), np.float32(POWER))
    found = likeness(scores, log, seed=0)
    assert (found.users, found.exact, found.overlap) == (100, 100, 1.0)
    monkeypatch.setattr(readers_module, "KEPT", 20)
    monkeypatch.setattr(readers_module, "SAMPLE", 10**6)
    found, overlaps = likeness(scores, log, seed=0), []
    for user in np.flatnonzero(dense.sum(1)):
        items = np.flatnonzero(dense[user])
        left = np.setdiff1d(np.arange(60), items)
        best = [
            left[np.argsort(-of[left], kind="stable")][:20]
            for of in (expected(dense, items), scores.scores(items, np.empty(dense.shape[1], np.float32)))
        ]
        overlaps.append(np.isin(*best).mean())
    assert found.exact == 0 and found.overlap == pytest.approx(np.mean(overlaps), abs=0.002)
    assert 0.3 < found.overlap < 1 and f"{found.overlap:.1%}" in str(found)


def test_a_large_model_has_them_and_answers_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Any
) -> None:
    plays, model = dataset("lastfm") / "plays.csv", tmp_path / "model"
    given = ("--model", "linear", "--factors", 0, "--set", "form=filter", "--set", "degree_power=0.4")
    monkeypatch.setattr(readers_module, "BOUNDED_FROM", 10_000)
    _, lines = done("train", plays, "-o", model, *given, "--memory", "1GiB")
    assert any("of the exact 20 items" in line for line in lines)
    manifest = read_manifest(model)
    assert "readers.users.npy" in manifest["files"]
    recommender, asked = Recommender(model, manifest), (np.array([3, 50, 700]), np.ones(3, np.float32))
    assert isinstance(recommender.scorer, FilterScorer) and recommender.scorer.by_readers is not None
    by_readers = recommender.recommend(*asked, 10)
    monkeypatch.setattr(recommender.scorer, "by_readers", None)
    assert [row for row, _ in by_readers] == [row for row, _ in recommender.recommend(*asked, 10)]
    path, whole = model / "readers.users.npy", (model / "readers.users.npy").read_bytes()
    path.write_bytes(whole[:128] + b"\xff" * (len(whole) - 128))
    with pytest.raises(BadInput, match="damaged"):
        Recommender(model, manifest).recommend(*asked, 10)
    path.write_bytes(whole[:-4])
    with pytest.raises(BadInput, match="manifest says"):
        load_manifest(model)
    monkeypatch.setattr(readers_module, "BOUNDED_FROM", 2_000_000)
    done("train", plays, "-o", model, *given, "--memory", "1GiB")
    assert "readers.users.npy" not in read_manifest(model)["files"] and not list(model.glob("readers.*"))


def test_what_came_since_counts_at_once(tmp_path: Path) -> None:
    dense = interactions(6)
    log, readers = opened(tmp_path, dense)
    scorer = linear_scorer(
        log, log.counts(), {"form": "filter", "degree_power": POWER, "saturation": 1.0}, None, readers
    )
    assert isinstance(scorer, FilterScorer)
    more = dense.copy()
    more[3, 39] = 1
    new = np.nonzero(more - dense)
    scorer.add(Added(new[0].astype(np.int32), new[1].astype(np.int32), dense.shape), more.sum(0).astype(np.int32))
    items = np.flatnonzero(more[3])
    (found,) = scorer.scores([(items, np.ones(len(items), np.float32))], scorer.workspace(1))
    np.testing.assert_allclose(found, expected(more, items), rtol=2e-5, atol=1e-7)
