"""The largest eigenvalues and eigenvectors of ``P = R~' R~``, by subspace iteration.

``R~ = Du^-1/2 R Di^-1/2`` (``Du``, ``Di``: numbers of items of the users, of users of the items), so that the
eigenvalues of P, the squared singular values of R~, lie between 0 and 1. Each iteration applies P to a block of
vectors and makes them orthonormal by the eigenvectors of their Gramian; at the end they are rotated onto those of P
(Halko, Martinsson and Tropp, "Finding structure with randomness", 2011, algorithms 4.4 and 5.3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.models.linear.log import Log

OVERSAMPLED = 32
"""Vectors more than are wanted, so that the last of these converge too; other numbers were not compared."""
ITERATIONS = 6
"""Applications of P, the last of which is for the eigenvalues. On Last.fm, whose largest eigenvalues belong to a few
users each, four leave the first of 64 at 0.991 instead of 1."""
ROWS = 1 << 13
"""Rows that are multiplied at a time when a block of vectors is changed in place."""
LEAST_SQUARE, LEAST_LENGTH = 1e-6, 1e-12
"""Squared length of a direction, relative to the longest, below which it is rounding; and the least that divides."""


def vectors(items: int, factors: int) -> int:
    """Number of vectors that are iterated for ``factors`` eigenvectors."""
    return min(factors + OVERSAMPLED, items)


def spectrum(
    log: Log,
    counts: NDArray[np.int32],
    factors: int,
    *,
    seed: int,
    after_iteration: Callable[[], None] = lambda: None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute the largest eigenvalues of P.

    Parameters
    ----------
    log
        The interactions.
    counts
        Users of each item, shape (items,).
    factors
        Number of eigenvalues, at most the number of items.
    seed
        Seed of the vectors that the iteration starts from.
    after_iteration
        Called after each application of P, ``ITERATIONS`` times; an exception that it raises ends the computation.

    Returns
    -------
    tuple
        Eigenvectors, shape (items, factors), and eigenvalues from large to small, shape (factors,).
    """
    import numpy as np

    width = vectors(len(counts), factors)
    scale = np.maximum(counts, 1).astype(np.float32)[:, None] ** -0.5
    basis = np.random.default_rng([seed, 2]).standard_normal((len(counts), width), np.float32)
    applied = np.empty_like(basis)
    for iteration in range(ITERATIONS):
        if iteration:
            basis, applied = applied, basis
        _orthonormalise(basis)
        basis *= scale
        log.gram(basis, out=applied)
        basis /= scale
        applied *= scale
        after_iteration()
    values, rotation = np.linalg.eigh(_products(basis, applied))
    largest = np.argsort(-values)[:factors]
    del applied
    _multiply(basis, rotation[:, largest].astype(np.float32))
    eigenvalues: NDArray[np.float32] = np.clip(values[largest], 0, 1).astype(np.float32)
    return np.ascontiguousarray(basis[:, :factors]), eigenvalues


def _products(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """``left' right``, symmetric but for rounding, summed in float64 over blocks of rows."""
    import numpy as np

    total = np.zeros((left.shape[1], right.shape[1]))
    for start in range(0, len(left), ROWS):
        total += left[start : start + ROWS].T @ right[start : start + ROWS]
    symmetric: NDArray[np.float64] = (total + total.T) / 2
    return symmetric


def _multiply(rows: NDArray[np.float32], matrix: NDArray[np.float32]) -> None:
    """Multiply each row by a matrix, in place; the first columns take the result."""
    for start in range(0, len(rows), ROWS):
        rows[start : start + ROWS, : matrix.shape[1]] = rows[start : start + ROWS] @ matrix


def _orthonormalise(basis: NDArray[np.float32]) -> None:
    """Make columns orthonormal in place: twice, because one pass loses digits where they are nearly parallel.

    Where there are fewer directions than columns, the columns that are left over stay short.
    """
    import numpy as np

    for _ in range(2):
        squares, directions = np.linalg.eigh(_products(basis, basis))
        lengths = np.sqrt(np.maximum(squares, LEAST_SQUARE * squares[-1]))
        _multiply(basis, (directions / np.maximum(lengths, LEAST_LENGTH)).astype(np.float32))
