"""The largest eigenvalues and eigenvectors of ``P = Di^-a R' Du^-u R Di^-a``, by subspace iteration.

``Du`` and ``Di`` are the numbers of items of the users, and of users of the items; u is the ``user_power`` and a the
``item_power``. With u = 1 and a = 1/2 no eigenvalue is above 1, and the largest belong to users who share no item with
others; a smaller a avoids that. Each iteration applies P to a block of vectors and makes them orthonormal by the
eigenvectors of their Gramian; at the end they are rotated onto those of P (Halko, Martinsson and Tropp, "Finding
structure with randomness", 2011, algorithms 4.4 and 5.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.models.linear.log import Log

OVERSAMPLED = 32
"""Vectors more than are wanted, so that the last of these converge too; other numbers were not compared."""
ITERATIONS = 6
"""Applications of P, the last of which is for the eigenvalues. On Last.fm, whose largest eigenvalues belong to a few
users each, four leave the first of 64 at 0.991 instead of 1."""
ROWS = 1 << 12
"""Rows that a thread multiplies at a time when a block of vectors is changed in place."""
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
    item_power: float = 0.5,
    seed: int,
    threads: int = 1,
    after_iteration: Callable[[], None] = lambda: None,
    kept: Callable[[ThreadPoolExecutor, int], VectorRows] | None = None,
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
    item_power
        a.
    seed
        Seed of the vectors that the iteration starts from.
    threads
        Threads that multiply blocks of rows. Those of BLAS would wait for each other: next to other work, an eigenvalue
        problem of 544 vectors took 1 s of two threads, and 0.03 s of one.
    after_iteration
        Called after each application of P, ``ITERATIONS`` times; an exception that it raises ends the computation.
    kept
        Makes what keeps the vectors, of a pool of threads and their number; ``None``: ``VectorRows``.

    Returns
    -------
    tuple
        Eigenvectors, shape (items, factors), or those of their rows that are kept here; and eigenvalues from large to
        small, shape (factors,).
    """
    from concurrent.futures import ThreadPoolExecutor

    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        rows = (kept or VectorRows)(pool, threads)
        return _spectrum(log, counts, factors, item_power, seed, rows, after_iteration)


def _spectrum(
    log: Log,
    counts: NDArray[np.int32],
    factors: int,
    item_power: float,
    seed: int,
    rows: VectorRows,
    after_iteration: Callable[[], None],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    import numpy as np

    width = vectors(len(counts), factors)
    basis = rows.first(np.random.default_rng([seed, 2]), len(counts), width)
    scale = np.maximum(rows.own(counts), 1).astype(np.float32)[:, None] ** np.float32(-item_power)
    applied = np.empty_like(basis)
    for iteration in range(ITERATIONS):
        if iteration:
            basis, applied = applied, basis
        rows.orthonormalise(basis, 2 if iteration == ITERATIONS - 1 else 1)
        basis *= scale
        rows.gram(log, basis, out=applied)
        basis /= scale
        applied *= scale
        after_iteration()
    values, rotation = rows.eigen(rows.products(basis, applied))
    largest = np.argsort(-values)[:factors]
    del applied
    rows.multiply(basis, rotation[:, largest].astype(np.float32))
    eigenvalues: NDArray[np.float32] = np.maximum(values[largest], 0).astype(np.float32)
    return np.ascontiguousarray(basis[:, :factors]), eigenvalues


class VectorRows:
    """Rows of blocks of vectors, here all of them, and their products, a few rows in each thread at a time."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int) -> None:
        self._pool, self._threads = pool, threads

    def own(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values of the items whose rows are here."""
        return values

    def first(self, random: np.random.Generator, items: int, width: int) -> NDArray[np.float32]:
        """Draw the vectors that the iteration starts from."""
        import numpy as np

        return random.standard_normal((items, width), np.float32)

    def gram(self, log: Log, vectors: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Apply the log to vectors (``Log.gram``)."""
        log.gram(vectors, out=out)

    def added(self, total: NDArray[np.float64]) -> NDArray[np.float64]:
        """Complete a sum over rows."""
        return total

    def eigen(self, square: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvalues, increasing, and eigenvectors of a symmetric matrix."""
        import numpy as np

        values, vectors = np.linalg.eigh(square)
        return values, vectors

    def _each(self, count: int, of: Callable[[slice], Any]) -> Iterator[Any]:
        """Yield the results for all spans of rows, in their order; only those of as many as there are threads exist."""
        spans = [slice(start, start + ROWS) for start in range(0, count, ROWS)]
        for first in range(0, len(spans), self._threads):
            yield from self._pool.map(of, spans[first : first + self._threads])

    def products(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
        """``left' right``, symmetric but for rounding, summed in float64 over blocks of rows."""
        import numpy as np

        total = np.zeros((left.shape[1], right.shape[1]))
        for part in self._each(len(left), lambda span: left[span].T @ right[span]):
            total += part
        total = self.added(total)
        symmetric: NDArray[np.float64] = (total + total.T) / 2
        return symmetric

    def multiply(self, rows: NDArray[np.float32], matrix: NDArray[np.float32]) -> None:
        """Multiply each row by a matrix, in place; the first columns take the result."""

        def change(span: slice) -> None:
            rows[span, : matrix.shape[1]] = rows[span] @ matrix

        for _ in self._each(len(rows), change):
            pass

    def orthonormalise(self, basis: NDArray[np.float32], times: int) -> None:
        """Make columns orthonormal in place: one pass loses digits where they are nearly parallel, so twice at the end.

        Where there are fewer directions than columns, the columns that are left over stay short.
        """
        import numpy as np

        for _ in range(times):
            squares, directions = self.eigen(self.products(basis, basis))
            lengths = np.sqrt(np.maximum(squares, LEAST_SQUARE * squares[-1]))
            self.multiply(basis, (directions / np.maximum(lengths, LEAST_LENGTH)).astype(np.float32))
