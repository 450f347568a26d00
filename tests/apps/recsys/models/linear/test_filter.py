"""Scores of a linear model are those of its formula, written out with dense matrices in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from apps.recsys.data.csr_store import NpyWriter
from apps.recsys.models.linear import log as log_module
from apps.recsys.models.linear.filter import FilterScorer, linear_scorer
from apps.recsys.models.linear.log import Log
from apps.recsys.models.linear.spectral import Spectrum, response
from apps.recsys.models.linear.spectrum import spectrum

Matrix = NDArray[np.float64]


def stored(directory: Path, dense: Matrix) -> Log:
    """A log of the binary matrix ``dense``, on disk."""
    directory.mkdir(exist_ok=True)
    with NpyWriter(directory / "history.indptr.npy", "<i8") as indptr:
        indptr.append(np.concatenate([[0], np.cumsum(dense.sum(1))]))
    with NpyWriter(directory / "history.items.npy", "<i4") as items:
        items.append(np.nonzero(dense)[1])
    return Log(directory, dense.shape[1])


def normalised(dense: Matrix, user_power: float = 1.0, item_power: float = 0.5) -> Matrix:
    """P of the formula."""
    users, items = np.maximum(dense.sum(1), 1), np.maximum(dense.sum(0), 1)
    scaled = dense / (users[:, None] ** (user_power / 2) * items**item_power)
    product: Matrix = scaled.T @ scaled
    return product


def interactions(seed: int, users: int = 60, items: int = 40) -> Matrix:
    """Interactions of which a few items have most; the last item has none, and the last user too."""
    random = np.random.default_rng(seed)
    dense = (random.random((users, items)) < 0.5 / np.arange(1, items + 1) ** 0.5).astype(np.float64)
    dense[-1] = dense[:, -1] = 0
    return dense


POWERS = st.sampled_from([0.0, 0.3, 0.5, 1.0])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    power=POWERS,
    item_power=POWERS,
    user_power=POWERS,
    block=st.sampled_from([1, 7, 1 << 20]),
)
def test_scores_are_those_of_the_dense_formula(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    power: float,
    item_power: float,
    user_power: float,
    block: int,
) -> None:
    dense = interactions(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "BLOCK_INTERACTIONS", block)
        log = stored(tmp_path_factory.mktemp("log"), dense)
        counts = log.counts()
        np.testing.assert_array_equal(counts, dense.sum(0))
        log.user_power = user_power
        product, degrees = normalised(dense, user_power, item_power), np.maximum(dense.sum(0), 1)
        values, vectors = np.linalg.eigh(product)
        few = Spectrum(vectors[:, -5:].astype(np.float32), values[-5:].astype(np.float32))
        histories = [(np.flatnonzero(row), np.ones(0, np.float32)) for row in dense[:4]] + [
            (np.arange(0), np.ones(0, np.float32))
        ]
        questions = np.stack([np.isin(np.arange(40), items) for items, _ in histories]).astype(np.float64)
        for spectral in (None, few):
            scorer = FilterScorer(
                log, counts, degree_power=power, item_power=item_power, saturation=2.0, spectrum=spectral
            )
            matrix = product
            if spectral is not None:
                ridge = 2 * values[-1]
                change = values[-5:] * ridge / (values[-5:] + ridge) - values[-5:]
                matrix = product + (vectors[:, -5:] * change) @ vectors[:, -5:].T
            expected = degrees**power * ((questions * degrees**-power) @ matrix)
            workspace, close = scorer.workspace(9), {"rtol": 2e-5, "atol": 2e-6 * max(1, expected.max())}
            np.testing.assert_allclose(scorer.scores(histories, workspace), expected, **close)
            rows = np.array([3, 0, 39])
            parts = scorer.contributions(*histories[1], rows)
            np.testing.assert_allclose(parts.sum(1), expected[1, rows], **close)


def test_a_spectral_model_scores_by_its_eigenvectors_alone(tmp_path: Path) -> None:
    dense = interactions(3)
    log = stored(tmp_path, dense)
    values, vectors = np.linalg.eigh(normalised(dense))
    few = Spectrum(vectors[:, -6:].astype(np.float32), values[-6:].astype(np.float32))
    hyper = {"form": "spectral", "degree_power": 0.3, "saturation": 0.1}
    scorer = linear_scorer(log, log.counts(), hyper, few)
    degrees, passed = np.maximum(dense.sum(0), 1), values[-6:] * 0.1 / (values[-6:] + 0.1)
    matrix = (vectors[:, -6:] * passed) @ vectors[:, -6:].T
    items = np.flatnonzero(dense[2])
    expected = degrees**0.3 * (matrix[items] * degrees[items, None] ** -0.3).sum(0)
    (scores,) = scorer.scores([(items, np.ones(len(items), np.float32))], scorer.workspace(1))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)
    parts = scorer.contributions(items, np.ones(len(items), np.float32), np.arange(40))
    assert parts is not None
    np.testing.assert_allclose(parts.sum(1), scores, rtol=1e-5, atol=1e-7)


def test_similarities_are_cosines_of_the_items_columns(tmp_path: Path) -> None:
    dense = interactions(5)
    log = stored(tmp_path, dense)
    scaled = dense / np.sqrt(np.maximum(dense.sum(1), 1))[:, None]
    lengths = np.maximum(np.sqrt((scaled**2).sum(0)), 1e-6)
    expected = (scaled.T @ scaled[:, 4]) / (lengths * lengths[4])
    scorer = FilterScorer(log, log.counts(), degree_power=0.4)
    np.testing.assert_allclose(scorer.similarities(4)[:-1], expected[:-1], rtol=1e-5)


@pytest.mark.parametrize("powers", [(1.0, 0.5), (0.5, 0.25)])
@pytest.mark.parametrize("factors", [1, 8, 40])
def test_the_spectrum_is_that_of_the_dense_matrix(tmp_path: Path, factors: int, powers: tuple[float, float]) -> None:
    dense, (user_power, item_power) = interactions(1), powers
    log, matrix = stored(tmp_path, dense), normalised(dense, *powers)
    log.user_power = user_power
    vectors, values = spectrum(log, log.counts(), factors, item_power=item_power, seed=0)
    exact = np.linalg.eigvalsh(matrix)[::-1]
    assert vectors.shape == (40, factors) and values.shape == (factors,)
    np.testing.assert_allclose(values, np.maximum(exact[:factors], 0), atol=1e-5 * exact[0])
    rebuilt = (vectors * values) @ vectors.T
    whole = np.linalg.norm(matrix - rebuilt, 2)
    assert whole <= (exact[factors] if factors < 40 else 0) + 1e-4 * exact[0]


def test_one_user_leaves_one_direction(tmp_path: Path) -> None:
    dense = np.ones((1, 6))
    log = stored(tmp_path, dense)
    vectors, values = spectrum(log, log.counts(), 4, seed=0)
    np.testing.assert_allclose(values, [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(np.abs(vectors[:, 0]), 6**-0.5, rtol=1e-5)


def test_the_response_saturates() -> None:
    eigenvalues: Any = np.array([1.0, 0.1, 0.0], np.float32)
    np.testing.assert_allclose(response(eigenvalues, 0.1), [0.1 / 1.1, 0.05, 0], rtol=1e-6)
    np.testing.assert_allclose(response(eigenvalues, 1e9), eigenvalues, rtol=1e-6)
    np.testing.assert_allclose(response(eigenvalues * 30, 0.1), response(eigenvalues, 0.1) * 30, rtol=1e-6)


def test_a_history_that_nobody_shares_gets_popular_items(tmp_path: Path) -> None:
    dense = np.zeros((6, 5))
    dense[0, 0] = 1  # the only user of the first item
    dense[1:, 2], dense[1:4, 4], dense[1:3, 1] = 1, 1, 1
    log = stored(tmp_path, dense)
    scorer = FilterScorer(log, log.counts(), degree_power=0.4)
    (scores,) = scorer.scores([(np.array([0]), np.ones(1, np.float32))], scorer.workspace(1))
    assert list(np.argsort(-scores[1:]) + 1) == [2, 4, 1, 3]
