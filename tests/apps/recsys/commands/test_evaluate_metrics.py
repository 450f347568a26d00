"""Metrics and depths by name, on Last.fm: the values of an evaluation that names none, and of rankings of all items."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import HeldOut, fold_in_rows
from apps.recsys.models.recommender import Recommender, load_manifest
from tests.apps.recsys import in_process
from tests.messages import says
from tests.promise import kept

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def model(dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which a tenth of the users is held out."""
    folder = tmp_path_factory.mktemp("metrics") / "model"
    command = ("train", dataset("lastfm") / "plays.csv", "-o", folder, "--split", "user-holdout")
    in_process.done(*command, "--model", "ials", "--factors", 16, "--set", "iterations=2")
    return folder


def evaluated(model: Path, *options: object) -> Mapping[str, Any]:
    """Results of an evaluation."""
    return in_process.done("evaluate", model, *options)[0]


def test_metrics_have_the_values_that_they_have_together(run: Run, model: Path) -> None:
    usual = evaluated(model)
    done = run("apps.recsys", "evaluate", model, "--metrics", "gini@10", "--json")
    assert done.code == 0, done.err
    kept(done.record)
    assert done.record["results"]["metrics"] == {"gini@10": usual["metrics"]["gini@10"]}
    some = evaluated(model, "--metrics", "recall@50,ndcg", "--metrics", "coverage", "--k", "20,10")
    assert list(some["metrics"]) == ["recall@50", "ndcg@20", "ndcg@10", "coverage@20", "coverage@10"]
    for name in some["metrics"].keys() & usual["metrics"].keys():
        assert some["metrics"][name] == usual["metrics"][name]
    assert some["intervals"].keys() == {"recall@50", "ndcg@20", "ndcg@10"}
    assert len(evaluated(model, "--k", 3)["metrics"]) == 9


def test_a_ranking_of_all_items(run: Run, model: Path) -> None:
    """MRR at the depth of the catalogue, by plain arithmetic; every item is found."""
    manifest = load_manifest(model)
    done = run("apps.recsys", "evaluate", model, "--metrics", "mrr,recall", "--k", manifest["items"], "--json")
    assert done.code == 0, done.err
    kept(done.record)
    deep = done.record["results"]["metrics"]
    recommender, held, history, reciprocal = Recommender(model, manifest), HeldOut(model), History(model), []
    assert recommender.factors is not None
    for row, user in enumerate(held.users):
        scored = held.items(row)
        items, values = fold_in_rows(history, scored, int(user))
        scores = recommender.factors.item_factors @ recommender.factors.fold_in(items, values)
        scores[items] = -np.inf
        reciprocal.append(1 / (1 + int((scores > scores[scored].max()).sum())))
    assert deep[f"mrr@{manifest['items']}"] == pytest.approx(np.mean(reciprocal), rel=1e-3)
    assert deep[f"recall@{manifest['items']}"] == 1


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (("--metrics", "ndc"), ("'ndc'", "ndcg", "gini")),
        (("--metrics", "ndcg@0"), ("'ndcg@0'", "1,000,000")),
        (("--metrics", "ndcg@-5"), ("'ndcg@-5'",)),
        (("--metrics", "ndcg@9999999"), ("1,000,000",)),
        (("--k", "0"), ("--k", "positive")),
        (("--metrics", "hr", "--negatives", "x"), ("--negatives", "--metrics")),
    ],
)
def test_what_is_no_metric(quick: Run, model: Path, options: tuple[object, ...], facts: tuple[str, ...]) -> None:
    done = quick("apps.recsys", "evaluate", model, *options)
    assert (done.code, done.out) == (2, "")
    says(done.err, *facts)
