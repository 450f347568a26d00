"""Candidates rank as the models that they stand for, each form with its own number of eigenvalues."""

import math
from pathlib import Path

import numpy as np

from apps.recsys.models.linear.filter import Spectrum, linear_scorer
from apps.recsys.models.linear.options import FACTORS, FILTER_FACTORS, ranks
from apps.recsys.models.top_k import top_k
from apps.recsys.training.compare_linear import Candidate, Comparison
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
    found = list(comparison.rankings(histories, 0.3, candidates, 6))
    for candidate, factors, rankings in zip(candidates, (0, 5, 12), found, strict=True):
        spectrum = Spectrum(made[0][:, :factors].copy(), made[1][:factors]) if factors else None
        scorer = linear_scorer(log, counts, candidate.settings, spectrum)
        samples = [(items, np.ones(len(items), np.float32)) for items in histories]
        scores = scorer.scores(samples, scorer.workspace(5))
        for row, items, ranking in zip(scores, histories, rankings, strict=True):
            row[items] = -np.inf
            np.testing.assert_array_equal(ranking, top_k(row, 6))


def test_a_filter_takes_fewer_eigenvalues_by_itself() -> None:
    assert (
        ranks("filter") == tuple(factors for factors in FACTORS if factors <= FILTER_FACTORS) == (256, 128, 64, 32, 0)
    )
    assert ranks("auto") == ranks("spectral") == (512, 256, 128, 64, 32, 0)
    assert ranks("ease") == (0,)
