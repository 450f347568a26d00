"""Candidates rank as the models that they stand for, each form with its own number of eigenvalues."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.models.linear.filter import linear_scorer
from apps.recsys.models.linear.options import FACTORS, FILTER_FACTORS, HYPER, ranks
from apps.recsys.models.linear.readers import Readers, write_readers
from apps.recsys.models.linear.spectral import Spectrum
from apps.recsys.models.top_k import top_k
from apps.recsys.training.compare_linear import Comparison
from apps.recsys.training.linear_candidates import Candidate, Search
from tests.apps.recsys.models.linear.test_filter import interactions, normalised, stored


def test_candidates_rank_as_their_models(tmp_path: Path) -> None:
    dense = interactions(11)
    log = stored(tmp_path, dense)
    counts = log.counts()
    values, vectors = np.linalg.eigh(normalised(dense))
    order = np.argsort(-values)[:12]
    made = vectors[:, order].astype(np.float32), np.clip(values[order], 0, 1).astype(np.float32)
    comparison = Comparison(log, np.maximum(counts, 1).astype(np.float32)[:, None], made, filter_factors=5)
    candidates = [
        Candidate("filter", 0.3, math.inf),
        Candidate("filter", 0.3, 0.2),
        Candidate("spectral", 0.3, 0.1),
    ]
    histories = [np.flatnonzero(row) for row in dense[:5]]
    found = list(comparison.rankings(histories, candidates, 6, comparison.powers()))
    for candidate, factors, rankings in zip(candidates, (0, 5, 12), found, strict=True):
        spectrum = Spectrum(made[0][:, :factors].copy(), made[1][:factors]) if factors else None
        scorer = linear_scorer(log, counts, candidate.settings, spectrum)
        samples = [(items, np.ones(len(items), np.float32)) for items in histories]
        scores = scorer.scores(samples, scorer.workspace(5))
        for row, items, ranking in zip(scores, histories, rankings, strict=True):
            row[items] = -np.inf
            np.testing.assert_array_equal(ranking, top_k(row, 6))


def test_hidden_items_do_not_help_their_user(tmp_path: Path) -> None:
    """Rankings by the readers of all interactions are those of a model without the hidden items."""
    dense, user = interactions(12), 3
    items = np.flatnonzero(dense[user])
    hidden, left = items[::3], np.setdiff1d(items, items[::3])
    without = dense.copy()
    without[user, hidden] = 0
    log, fewer = stored(tmp_path / "all", dense), stored(tmp_path / "left", without)
    write_readers(tmp_path / "all", log, log.counts())
    log.user_power = fewer.user_power = 0.5
    candidates = [Candidate("filter", 0.25, math.inf, 0.5, 0.5), Candidate("filter", 0.5, math.inf, 0.25, 0.5)]
    compared = []
    for each, readers in ((log, Readers(tmp_path / "all", log)), (fewer, None)):
        comparison = Comparison(each, np.maximum(each.counts(), 1).astype("f4")[:, None], None, 0, readers)
        alone = (user, hidden) if readers is not None else None
        compared.append(list(comparison.rankings([left], candidates, 10, comparison.powers(), alone)))
    for found, expected in zip(*compared, strict=True):
        np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize(
    ("given", "factors", "forms"),
    [
        ({}, 64, {"filter", "spectral"}),
        ({}, 0, {"filter"}),
        ({"form": "spectral"}, 64, {"spectral"}),
        ({"form": "filter", "saturation": 2.0}, 64, {"filter"}),
        ({"degree_power": 0.4, "user_power": 1.0, "item_power": 0.5}, 64, {"filter", "spectral"}),
    ],
)
def test_rounds_keep_to_what_is_given(given: dict[str, Any], factors: int, forms: set[str]) -> None:
    search, means = Search({**HYPER, **given}, factors), dict[Candidate, float]()
    for candidates in search.rounds(means):
        for candidate in candidates:
            means[candidate] = 1.0 / (1 + abs(candidate.degree_power - 0.2) + abs(candidate.user_power - 0.75))
    assert {candidate.form for candidate in means} == forms
    for name, number in given.items():
        of = means if name != "saturation" else search.eligible(means)
        assert {getattr(candidate, name) for candidate in of} == {number}, name
    if not given and factors:
        assert any(candidate.spectral for candidate in means)
    assert len(means) < 100


@pytest.mark.parametrize(("better", "usual"), [(1.05, True), (1.3, False)])
def test_other_powers_must_be_much_better(better: float, usual: bool) -> None:
    """A tenth better on hidden items, or the usual powers are taken; both with the best degree power and saturation."""
    search, means = Search(HYPER, 64), dict[Candidate, float]()
    for candidates in search.rounds(means):
        for one in candidates:
            near = abs(one.degree_power - 0.2) + (0 if one.saturation == 2.0 else 0.1)
            near += abs(one.item_power - 0.25) * (not one.usual)
            means[one] = (1 if one.usual else better if one.form == "filter" else 0.5) / (1 + near)
    chosen = max(search.eligible(means), key=means.__getitem__)
    assert chosen.form == "filter" and chosen.usual == usual
    assert chosen.saturation == 2.0 and abs(chosen.degree_power - 0.2) <= 0.05


def test_a_filter_takes_fewer_eigenvalues_by_itself() -> None:
    assert (
        ranks("filter") == tuple(factors for factors in FACTORS if factors <= FILTER_FACTORS) == (256, 128, 64, 32, 0)
    )
    assert ranks("auto") == ranks("spectral") == (512, 256, 128, 64, 32, 0)
    assert ranks("ease") == (0,)
