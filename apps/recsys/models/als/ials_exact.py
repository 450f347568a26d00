"""Solve rows of implicit ALS exactly, each with its own regularisation.

Rendle et al. ("Revisiting the performance of iALS on item recommendation benchmarks", 2021) regularise a row in
proportion to a power of the weight of its observations. ``implicit``'s solver takes one number for all rows.

The other side's factors are rotated once onto the eigenvectors of their Gramian, where it is diagonal: adding any
regularisation and inverting it is then a division. The ``n`` interactions of a row change the Gramian by rank ``n``, so
a row with fewer interactions than factors needs a system of ``n`` equations (Woodbury identity), and rows of equal
length are solved together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Weight = TypeVar("Weight", float, "NDArray[np.float64]")
"""Weight of one row, or of each row."""

GATHERED = 1 << 19
"""Numbers of the other side's factors that a thread gathers at a time."""
WORKSPACE = 4
"""Largest number of such arrays per thread: gathered, divided or weighted, a system and its copy."""


def workspace_bytes(*, rows: int, interactions: int, factors: int, threads: int) -> int:
    """Most bytes that ``solve`` allocates.

    Parameters
    ----------
    rows
        Rows of the other side.
    interactions
        Interactions of all rows that are solved.
    factors
        Numbers per row.
    threads
        Threads that solve.
    """
    rotated = 4 * rows * factors
    gathered = min(GATHERED, interactions * factors)
    return rotated + threads * 4 * WORKSPACE * (gathered + factors * factors)


def ridge(regularization: float, exponent: float, *, weight: Weight, other_rows: float) -> Weight:
    """Regularisation of a row, or of each row: ``regularization * (1 + weight / other_rows) ** exponent``.

    Parameters
    ----------
    regularization, exponent
        Hyper-parameters ``regularization`` and ``frequency_scaling``.
    weight
        Sum over the row's interactions of confidence - 1: their weight beyond that of an unobserved pair. A number, or
        an array of one per row.
    other_rows
        Number of rows of the other side, each of which has weight 1.
    """
    scale: Weight = (1 + weight / other_rows) ** exponent
    return regularization * scale


def solve(
    confidences: Any,
    solved: NDArray[np.float32],
    fixed: NDArray[np.float32],
    *,
    regularization: float,
    exponent: float,
    threads: int,
    other_rows: float | None = None,
) -> None:
    """Solve rows in place: ``(Y'Y + λI + Y'(C - I)Y)⁻¹ Y'Cp`` (Hu et al. 2008, equation 4) with the ``ridge`` of each.

    Parameters
    ----------
    confidences
        SciPy CSR, shape (rows, other rows).
    solved
        Shape (rows, factors): receives the result.
    fixed
        The other side's factors, shape (other rows, factors).
    regularization, exponent
        As ``ridge``.
    threads
        Threads that share the rows. BLAS must run one thread in each.
    other_rows
        As ``ridge``; ``None``: the rows of ``fixed``.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    spectrum, axes = np.linalg.eigh((fixed.T @ fixed).astype(np.float64))
    axes = axes.astype(np.float32)
    rotated = fixed @ axes
    indptr, indices, data = confidences.indptr, confidences.indices, confidences.data
    lengths = np.diff(indptr)
    weight = np.asarray(confidences.sum(1), np.float64).ravel() - lengths
    ridges = ridge(regularization, exponent, weight=weight, other_rows=other_rows or len(fixed))

    def work(rows: NDArray[np.intp]) -> None:
        length = int(lengths[rows[0]])
        diagonal = (spectrum + ridges[rows][:, None]).astype(np.float32)
        if length < fixed.shape[1]:
            entries = indptr[rows][:, None] + np.arange(length)
            solution = _short(rotated[indices[entries]], data[entries], diagonal)
        else:
            row = slice(indptr[rows[0]], indptr[rows[0] + 1])
            solution = _long(rotated, indices[row], data[row], diagonal[0])
        solved[rows] = solution @ axes.T

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, _groups(lengths, fixed.shape[1])):
            pass


def _groups(lengths: NDArray[Any], factors: int) -> Iterator[NDArray[np.intp]]:
    """Yield rows that are solved together: of equal length if shorter than ``factors``, else one by one."""
    import numpy as np

    order = np.argsort(lengths, kind="stable")
    inner = np.flatnonzero(np.diff(lengths[order])) + 1
    for rows in np.split(order, inner):
        length = int(lengths[rows[0]])
        size = max(1, GATHERED // (max(1, length) * factors)) if length < factors else 1
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def _short(
    gathered: NDArray[np.float32], confidences: NDArray[np.float32], diagonal: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Solve rows of ``n`` interactions each: ``D⁻¹Z' (I + (C - I) Z D⁻¹ Z')⁻¹ c``, shape (rows, factors).

    Parameters
    ----------
    gathered, confidences, diagonal
        Shapes (rows, n, factors), (rows, n), (rows, factors).
    """
    import numpy as np

    divided = gathered / diagonal[:, None]
    system = divided @ gathered.transpose(0, 2, 1)
    system *= (confidences - 1)[:, :, None]
    each = np.arange(system.shape[1])
    system[:, each, each] += 1
    weights = np.linalg.solve(system, confidences[..., None])
    solution: NDArray[np.float32] = np.einsum("rnf,rn->rf", divided, weights[..., 0])
    return solution


def _long(
    rotated: NDArray[np.float32],
    items: NDArray[np.integer[Any]],
    confidences: NDArray[np.float32],
    diagonal: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Solve one row by the system of all factors, which is summed over blocks of the row's interactions."""
    import numpy as np

    factors = rotated.shape[1]
    system = np.diag(diagonal)
    right = np.zeros(factors, np.float32)
    size = max(1, GATHERED // factors)
    for start in range(0, len(items), size):
        block = slice(start, start + size)
        gathered = rotated[items[block]]
        right += confidences[block] @ gathered
        system += gathered.T @ (gathered * (confidences[block] - 1)[:, None])
    solution: NDArray[np.float32] = np.linalg.solve(system, right)
    return solution
