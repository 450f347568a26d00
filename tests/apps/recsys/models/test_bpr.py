"""``--model bpr``: start and epochs are ``implicit``'s, users are found where the loss is least, runs repeat."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from implicit.cpu.bpr import BayesianPersonalizedRanking

from apps.recsys.models import bpr, weights
from apps.recsys.models.bpr import Pairs
from apps.recsys.models.embedding import user_encoders
from apps.recsys.planning import bpr_terms
from apps.recsys.training import checkpoint
from common.errors import UsageError
from tests.apps.recsys import in_process
from tests.apps.recsys.conftest import Trained
from tests.apps.recsys.interrupted import started, sweeps, wait_for
from tests.messages import continued, refused, says
from tests.promise import kept
from tests.schemas import read_manifest

Run = Callable[..., Any]


HYPER = {"learning_rate": 0.05, "regularization": 0.02, "iterations": 3, "user_regularization": 0.1}


def matrix() -> Any:
    """Random interactions of 50 users with 40 items, the last of which nobody had."""
    made = scipy.sparse.random(50, 39, 0.2, format="csr", dtype=np.float32, random_state=np.random.default_rng(0))
    made.sort_indices()
    return scipy.sparse.csr_matrix((made.data, made.indices, made.indptr), shape=(50, 40))


def test_it_starts_and_steps_as_implicit_does() -> None:
    pairs = Pairs.of(matrix())
    state = bpr.first_state(pairs, items=40, factors=9, seed=5)
    peer = BayesianPersonalizedRanking(factors=8, iterations=0, random_state=5)
    peer.fit(matrix(), show_progress=False)
    np.testing.assert_array_equal(state.users, peer.user_factors)
    np.testing.assert_array_equal(state.items, peer.item_factors)
    assert not state.items[39].any() and (state.users[:, -1] == 1).all()
    rates = {name: HYPER[name] for name in ("learning_rate", "regularization")}
    for epoch in range(3):
        one = BayesianPersonalizedRanking(factors=8, iterations=1, random_state=[5, epoch], num_threads=1, **rates)
        one.user_factors, one.item_factors = peer.user_factors, peer.item_factors
        one.fit(matrix(), show_progress=False)
    bpr.fit(pairs, state, hyper=HYPER, threads=1, seed=5, after_epoch=lambda state: None)
    np.testing.assert_array_equal(state.users, peer.user_factors)
    np.testing.assert_array_equal(state.items, peer.item_factors)


def test_factors_that_are_not_finite_end_it() -> None:
    pairs = Pairs.of(matrix())
    state = bpr.first_state(pairs, items=40, factors=9, seed=5)
    with pytest.raises(ArithmeticError, match="learning_rate"):
        bpr.fit(pairs, state, hyper={**HYPER, "learning_rate": 1e30}, threads=1, seed=0, after_epoch=lambda state: None)


@pytest.mark.parametrize("had", [1, 12, 300])
def test_a_user_is_found_where_its_loss_is_least(had: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    items = random.normal(0, 0.4, (600, 9)).astype(np.float32)
    own = np.sort(random.choice(600, had, replace=False))
    fold = user_encoders.fold_in_newton(items, items[:100], HYPER)
    vector = fold(own, np.ones(had, np.float32)).astype(np.float64)
    assert vector[8] == 1

    def gradient(vector: Any) -> Any:
        """Gradient of the loss over all pairs, in float64, with respect to all but the bias."""
        exact = items.astype(np.float64)
        differences = exact[own][:, None] - exact[None, :100]
        wrong = 1 / (1 + np.exp(differences @ vector))
        return HYPER["user_regularization"] * vector[:8] - (wrong[..., None] * differences[..., :8]).mean((0, 1))

    first = np.zeros(9)
    first[8] = 1
    assert np.abs(gradient(vector)).max() < 0.02 * np.abs(gradient(first)).max()
    monkeypatch.setattr(user_encoders, "POSITIVE_ROWS", 7)
    np.testing.assert_allclose(fold(own, np.ones(had, np.float32)), vector, atol=1e-5)
    assert fold(own[:0], np.ones(0, np.float32)).tolist() == first.tolist()
    monkeypatch.setattr(user_encoders, "NEWTON_STEPS", 5)
    least = fold(own, np.ones(had, np.float32)).astype(np.float64)
    assert np.abs(gradient(least)).max() < 1e-5 * np.abs(gradient(first)).max() + 1e-6


def test_terms_are_the_sizes_of_the_arrays() -> None:
    made = matrix()
    pairs = Pairs.of(matrix())
    state = bpr.first_state(pairs, items=40, factors=9, seed=5)
    priced = {term.name: term.bytes for term in bpr_terms.terms(users=50, interactions=made.nnz, factors=9)}
    assert priced["user factors"] == state.users.nbytes
    rows = pairs.users.nbytes + pairs.items.nbytes
    assert rows <= rows + pairs.indptr.nbytes <= priced["interactions"] == rows + 8 * 50
    assert bpr_terms.fold_terms("ials", factors=9, longest=9, threads=2, phases=("evaluate",)) == []
    for longest, positives in ((1000, user_encoders.POSITIVE_ROWS), (10, 10)):
        (fold,) = bpr_terms.fold_terms("bpr", factors=9, longest=longest, threads=2, phases=("evaluate",))
        pairs = 2 * 5 * positives * bpr.COMPARED * 4
        assert pairs < fold.bytes < pairs + 2 * 4 * 3 * 9 * (positives + bpr.COMPARED + 1)


def test_train_evaluate_answer(trained: Trained, run: Run, quick: Run, tmp_path: Path) -> None:
    options = ("--model", "bpr", "--factors", 17, "--threads", 1, "--memory", "250MiB", "--json")
    command = ("apps.recsys", "train", trained.interactions, *options, "--split", "user-holdout", "--set")
    for name in ("one", "two"):
        done = run(*command, "learning_rate=0.05", "-o", tmp_path / name)
        assert done.code == 0, done.err
        kept(done.record)
    for name in (weights.WEIGHTS, "items.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    model = tmp_path / "one"
    manifest = read_manifest(model)
    assert (manifest["kind"], manifest["factors"], manifest["hyper"]["iterations"]) == ("bpr", 17, 40)
    assert weights.read(model / weights.WEIGHTS).shape == (200, 17)
    metrics = done.record["results"]["metrics"]
    assert metrics["ndcg@10"] > 0.3  # popularity reaches 0.2
    again = run("apps.recsys", "evaluate", model, "--memory", "200MiB", "--json")
    assert again.record["results"]["metrics"] == pytest.approx(metrics, rel=1e-6)
    kept(again.record)
    shown = run("apps.recsys", "recommend", model, "--history", "0,8,16", "-k", 5, "--json").record
    scores = [item["score"] for item in shown["results"]["items"]]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    kept(shown)
    lists, _ = in_process.done("recommend", model, "--all-users", "-o", tmp_path / "lists.parquet")
    assert lists["rows"] == 300 * 10
    says(quick("apps.recsys", "inspect", model).out, "bpr", "17 factors")


def test_its_settings_are_checked(trained: Trained, tmp_path: Path) -> None:
    command = ("train", trained.interactions, "-o", tmp_path / "model", "--model", "bpr")
    for options, facts in (
        (("--set", "alpha=1"), ("--set alpha=1", "--model ials", "bpr")),
        (("--set", "beta=1"), ("--set", "beta", "user_regularization")),
        (("--set", "learning_rate=0"), ("learning_rate", 0)),
        (("--factors", 1), ("factors", "bias")),
        (("--table", "int8"), ("--table", "--model embedding")),
    ):
        with refused(UsageError, *facts) as caught:
            in_process.done(*command, *options)
        assert "\n" not in str(caught.value)


def test_a_killed_training_ends_as_an_undisturbed_one(
    quick: Run, dataset: Callable[[str], Path], tmp_path: Path
) -> None:
    interactions = dataset("lastfm") / "plays.csv"
    options = ("--model", "bpr", "--factors", "32", "--threads", "1", "--epochs", "60")
    whole, model = tmp_path / "whole", tmp_path / "model"
    assert quick("apps.recsys", "train", interactions, "-o", whole, *options, "-q").code == 0
    state = model / ".training" / checkpoint.FILE
    with started(interactions, model, "250MiB", options) as process:
        wait_for(lambda: sweeps(state) > 0, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    assert 0 < sweeps(state) < 60
    done = quick("apps.recsys", "train", interactions, "-o", model, *options)
    assert done.code == 0
    continued(done.err)
    assert (model / weights.WEIGHTS).read_bytes() == (whole / weights.WEIGHTS).read_bytes()
