"""Rows of implicit ALS solved exactly, each with a regularisation of its own.

Rendle et al. ("Revisiting the performance of iALS on item recommendation benchmarks", 2021) regularise a row in
proportion to the weight of all that it has to explain, to a power. ``implicit``'s solver knows one number for all rows.

The other side's factors are turned once into the axes of their Gramian, which is diagonal there: its inverse with any
regularisation added is a division. What a row's own ``n`` interactions change in it has rank ``n``, so a row shorter
than the factors costs a system of ``n`` equations instead of ``factors`` (Woodbury), and rows of equal length are
solved together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Weight = TypeVar("Weight", float, "NDArray[np.float64]")

GATHERED = 1 << 19
"""Numbers of the other side's factors that a thread looks at together."""
WORKSPACE = 4
"""Arrays of that size that it holds at most: gathered, divided or weighted, a system and its copy."""


def workspace_bytes(*, rows: int, factors: int, threads: int) -> int:
    """What ``solve`` holds beside its arguments, at most; ``rows``: of the other side."""
    turned = 4 * rows * factors
    return turned + threads * 4 * WORKSPACE * (GATHERED + factors * factors)


def ridge(regularization: float, exponent: float, *, weight: Weight, other_rows: int) -> Weight:
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
) -> None:
    """Solve some rows in place: ``(Y'Y + λI + Y'(C - I)Y)⁻¹ Y'Cp`` (Hu et al. 2008, equation 4) with a ``ridge`` each.

    Parameters
    ----------
    confidences
        SciPy CSR, shape (rows, other rows).
    solved
        Shape (rows, factors): where the result goes.
    fixed
        The other side's factors, shape (other rows, factors).
    threads
        They share the rows; BLAS below must run one thread.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    spectrum, axes = np.linalg.eigh((fixed.T @ fixed).astype(np.float64))
    axes = axes.astype(np.float32)
    turned = fixed @ axes
    indptr, indices, data = confidences.indptr, confidences.indices, confidences.data
    lengths = np.diff(indptr)
    weight = np.asarray(confidences.sum(1), np.float64).ravel() - lengths
    ridges = ridge(regularization, exponent, weight=weight, other_rows=len(fixed))

    def work(rows: NDArray[np.intp]) -> None:
        length = int(lengths[rows[0]])
        diagonal = (spectrum + ridges[rows][:, None]).astype(np.float32)
        if length < fixed.shape[1]:
            places = indptr[rows][:, None] + np.arange(length)
            found = _short(turned[indices[places]], data[places], diagonal)
        else:
            part = slice(indptr[rows[0]], indptr[rows[0] + 1])
            found = _long(turned, indices[part], data[part], diagonal[0])
        solved[rows] = found @ axes.T

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, _groups(lengths, fixed.shape[1])):
            pass


def _groups(lengths: NDArray[Any], factors: int) -> Iterator[NDArray[np.intp]]:
    """Rows that are solved together: of equal length below ``factors``; longer ones one by one."""
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
    """``D⁻¹Z' (I + (C - I) Z D⁻¹ Z')⁻¹ c`` for rows of ``n`` interactions each.

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
    found: NDArray[np.float32] = np.einsum("rnf,rn->rf", divided, weights[..., 0])
    return found


def _long(
    turned: NDArray[np.float32],
    items: NDArray[np.integer[Any]],
    confidences: NDArray[np.float32],
    diagonal: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The system of all factors for one row, summed over pieces of it."""
    import numpy as np

    factors = turned.shape[1]
    system = np.diag(diagonal)
    right = np.zeros(factors, np.float32)
    size = max(1, GATHERED // factors)
    for start in range(0, len(items), size):
        part = slice(start, start + size)
        gathered = turned[items[part]]
        right += confidences[part] @ gathered
        system += gathered.T @ (gathered * (confidences[part] - 1)[:, None])
    found: NDArray[np.float32] = np.linalg.solve(system, right)
    return found
