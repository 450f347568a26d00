"""EASE in float32, in place and by panels, equals the formula in float64; its rows on disk are checked."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys.models.linear import ease
from apps.recsys.models.linear.ease import EaseScorer, RowsOnDisk
from common.errors import BadInput
from tests.apps.recsys.models.linear.test_filter import Matrix, interactions, stored


def formula(dense: Matrix, ridge: float) -> tuple[Matrix, Matrix]:
    """B and the diagonal of C in float64."""
    inverse = np.linalg.inv(dense.T @ dense + ridge * np.eye(dense.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights, np.diag(inverse)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), ridge=st.sampled_from([0.5, 20.0, 1000.0]), panel=st.sampled_from([1, 7, 40, 256]))
def test_weights_are_those_of_the_formula(
    tmp_path_factory: pytest.TempPathFactory, seed: int, ridge: float, panel: int
) -> None:
    dense = interactions(seed)
    log = stored(tmp_path_factory.mktemp("log"), dense)
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ease, "PANEL", panel)
        patch.setattr(ease, "PAIRS", 50)
        got, variances = ease.item_weights(log, ridge, lambda: calls.append(1))
        assert len(calls) == ease.steps(40)
    expected, diagonal = formula(dense, ridge)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-5)
    np.testing.assert_allclose(variances, diagonal, rtol=1e-4)


def test_scores_explanations_and_similarities(tmp_path: Path) -> None:
    dense = interactions(3)
    log = stored(tmp_path, dense)
    weights, variances = ease.item_weights(log, 5.0)
    ease.write(tmp_path, weights)
    assert (tmp_path / ease.FILE).stat().st_size == 128 + 4 * 40 * 40
    expected, diagonal = formula(dense, 5.0)
    histories = [(np.flatnonzero(row), np.ones(0, np.float32)) for row in (dense[0], dense[1], dense[-1])]
    scorer = EaseScorer(RowsOnDisk(tmp_path, 40), log.counts(), variances)
    scores = scorer.scores(histories, scorer.workspace(4))
    np.testing.assert_allclose(scores, dense[[0, 1, -1]] @ expected, atol=1e-4)
    parts = scorer.contributions(*histories[0], np.array([3, 39, 0]))
    np.testing.assert_allclose(parts, expected[histories[0][0]][:, [3, 39, 0]].T, atol=2e-5)
    np.testing.assert_allclose(parts.sum(1), scores[0, [3, 39, 0]], atol=1e-6)
    inverse = -expected * diagonal  # the partial correlations of the precision matrix
    correlations = -inverse / np.sqrt(np.outer(diagonal, diagonal))
    near = scorer.similarities(4)
    np.testing.assert_allclose(np.delete(near, 4), np.delete(correlations[4], 4), atol=1e-4)
    some = np.array([4, 0, 9])
    np.testing.assert_allclose(scorer.closeness(some)[0], near[some], rtol=1e-6)
    assert near[4] == 1 and (np.abs(near) <= 1.0001).all()
    # A history that is empty gets popular items, those with most users first.
    assert list(np.argsort(-scores[2], kind="stable")) == list(np.argsort(-np.maximum(dense.sum(0), 1), kind="stable"))


def test_damaged_rows_are_refused(tmp_path: Path) -> None:
    ease.write(tmp_path, np.ones((5, 5), np.float32))
    path = tmp_path / ease.FILE
    np.testing.assert_array_equal(RowsOnDisk(tmp_path, 5)[4], np.ones(5))
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(BadInput, match="shorter"):
        RowsOnDisk(tmp_path, 5)[4]
    path.write_bytes(whole[:128] + np.float32(np.inf).tobytes() + whole[132:])
    with pytest.raises(BadInput, match="row 0"):
        RowsOnDisk(tmp_path, 5)[0]
