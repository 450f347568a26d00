"""Rows with a regularisation each: equal to the system written out in float64, whatever their length."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse

from apps.recsys.models.als import ials_exact


def naive(
    confidences: scipy.sparse.csr_matrix, fixed: np.ndarray, regularization: float, exponent: float
) -> np.ndarray:
    """Equation 4 of Hu et al. 2008, row by row."""
    factors = fixed.astype(np.float64)
    found = np.zeros((confidences.shape[0], factors.shape[1]))
    for row, weights in enumerate(confidences.toarray().astype(np.float64)):
        had = weights > 0
        ridge = regularization * (1 + (weights[had] - 1).sum() / len(factors)) ** exponent
        system = factors.T @ factors + ridge * np.eye(factors.shape[1])
        system += factors[had].T @ ((weights[had] - 1)[:, None] * factors[had])
        found[row] = np.linalg.solve(system, factors[had].T @ weights[had])
    return found


def matrix(rows: int, columns: int, seed: int) -> scipy.sparse.csr_matrix:
    """Rows of every length from none to half of all, with confidences on both sides of 1."""
    random = np.random.default_rng(seed)
    dense = np.zeros((rows, columns), np.float32)
    for row in range(rows):
        had = random.permutation(columns)[: row * columns // (2 * rows)]
        dense[row, had] = random.uniform(0.3, 6, len(had))
    return scipy.sparse.csr_matrix(dense)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("threads", [1, 3])
def test_equal_to_the_system_written_out(exponent: float, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ials_exact, "GATHERED", 64)  # so that groups and long rows are cut
    confidences = matrix(60, 50, seed=1)
    fixed = np.random.default_rng(2).normal(0, 0.5, (50, 8)).astype(np.float32)
    solved = np.full((60, 8), np.nan, np.float32)
    ials_exact.solve(confidences, solved, fixed, regularization=2.0, exponent=exponent, threads=threads)
    np.testing.assert_allclose(solved, naive(confidences, fixed, 2.0, exponent), rtol=2e-4, atol=2e-5)


def test_the_same_to_the_bit_with_more_threads() -> None:
    confidences = matrix(200, 80, seed=3)
    fixed = np.random.default_rng(4).normal(0, 0.5, (80, 16)).astype(np.float32)
    results = []
    for threads in (1, 4):
        solved = np.empty((200, 16), np.float32)
        ials_exact.solve(confidences, solved, fixed, regularization=3.0, exponent=1.0, threads=threads)
        results.append(solved)
    assert (results[0] == results[1]).all()


def test_it_lowers_the_objective_of_a_whole_factorisation() -> None:
    """Alternating between the sides never raises what is minimised: the regularisation is the same on both visits."""
    confidences = matrix(40, 30, seed=5)
    random = np.random.default_rng(6)
    users, items = (random.normal(0, 0.1, (n, 4)).astype(np.float32) for n in (40, 30))
    seen = []
    for _ in range(4):
        ials_exact.solve(confidences, users, items, regularization=1.0, exponent=1.0, threads=1)
        ials_exact.solve(confidences.T.tocsr(), items, users, regularization=1.0, exponent=1.0, threads=1)
        seen.append(objective(confidences, users, items))
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(seen))
    assert seen[-1] < seen[0]


def objective(confidences: scipy.sparse.csr_matrix, users: np.ndarray, items: np.ndarray) -> float:
    """Weighted squared errors and both sides' regularisation."""
    weights = confidences.toarray().astype(np.float64)
    scores = users.astype(np.float64) @ items.T.astype(np.float64)
    fit = (np.where(weights > 0, weights, 1) * ((weights > 0) - scores) ** 2).sum()
    beyond = np.where(weights > 0, weights - 1, 0)
    for side, axis in ((users, 1), (items, 0)):
        ridge = 1 + beyond.sum(axis) / weights.shape[axis]
        fit += (ridge * np.square(side.astype(np.float64)).sum(1)).sum()
    return float(fit)
