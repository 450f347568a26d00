"""Implicit ALS: training by the library ``implicit``, and the fold-in of a user from its history.

Objective (Hu, Koren, Volinsky, "Collaborative filtering for implicit feedback datasets", 2008): every pair of user and
item has preference 0 and confidence 1; an interaction has preference 1 and confidence ``alpha * weight(value)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from apps.recsys.models.als import ials_exact
from apps.recsys.models.als.factor_state import FactorState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.models.als.als_matrices import Sides
    from apps.recsys.models.scan.rows import Rows

HYPER: Mapping[str, Any] = {
    "alpha": 2.0,
    "regularization": 10.0,
    "iterations": 15,
    "weight": "log",
    "frequency_scaling": 0.0,
}
"""Hyper-parameters with their defaults (chosen on MovieLens-1M and Last.fm, see ``apps/recsys/bench``).

``frequency_scaling`` is the exponent of ``ials_exact.ridge``. With 0 all rows have the same regularisation, and
``implicit`` solves them.
"""
SPLIT_ROWS = 256
"""Items of a history that ``contributions`` handles together."""
FIRST_SCALE = 0.01
"""Factors start uniform in [0, 0.01), as in ``implicit``."""


def first_state(sides: Sides, *, factors: int, seed: int) -> FactorState:
    """The factors that ``AlternatingLeastSquares(random_state=seed)`` starts from."""
    import numpy as np

    random = np.random.default_rng(seed)
    users = uniform(random, sides.users.rows, factors)
    items = uniform(random, sides.items.rows, factors)
    for first in (users, items):
        first *= FIRST_SCALE
    return FactorState(users, items)


def fit(
    sides: Sides,
    state: FactorState,
    *,
    hyper: Mapping[str, Any],
    threads: int,
    after_block: Callable[[FactorState], None],
) -> NDArray[np.float32]:
    """Train from a state to the last iteration.

    With ``frequency_scaling=0`` the result equals that of ``AlternatingLeastSquares(random_state=seed).fit(matrix)`` to
    the bit, whatever the blocks: each row is solved on its own, from the other side's factors and its last value.

    Parameters
    ----------
    sides
        The confidences, by user and by item.
    state
        Initial state (``first_state``); changed in place.
    hyper
        As ``HYPER``.
    threads
        Threads of the solver.
    after_block
        Called with the state after each block of rows; an exception that it raises ends the training.

    Returns
    -------
    NDArray
        The items' factors, shape (items, factors).

    Raises
    ------
    ArithmeticError
        The factors are not finite at the end.
    """
    import implicit.cpu.als  # noqa: F401  BLAS must be loaded before it can be limited
    import numpy as np
    from threadpoolctl import threadpool_limits

    # The solvers start their own threads, so BLAS must run one each (implicit's check warns of a tenfold slowdown).
    with threadpool_limits(1, "blas"):
        solve = solver(hyper, threads)
        while state.sweep < 2 * hyper["iterations"]:
            by_item = state.sweep % 2
            side = sides.items if by_item else sides.users
            solved, fixed = (state.items, state.users) if by_item else (state.users, state.items)
            for start, stop, block in side.blocks(state.row):
                solve(block, solved[start:stop], fixed)
                del block  # before the next one is read
                state.row = stop
                after_block(state)
            state.sweep, state.row = state.sweep + 1, 0
    if not np.isfinite(state.items.sum(dtype=np.float64)):
        raise ArithmeticError("the factors are not finite; try a larger regularization")
    return state.items


def solver(hyper: Mapping[str, Any], threads: int, other_rows: int | None = None) -> Callable[[Any, Any, Any], None]:
    """A function that solves rows in place, from their confidences and the other side's factors.

    Parameters
    ----------
    hyper
        As ``HYPER``.
    threads
        Threads of the solver.
    other_rows
        Rows of the other side, if not all are given to the function (``ials_exact.solve``).
    """
    if hyper["frequency_scaling"]:
        return partial(
            ials_exact.solve,
            regularization=hyper["regularization"],
            exponent=hyper["frequency_scaling"],
            threads=threads,
            other_rows=other_rows,
        )
    from implicit.cpu.als import AlternatingLeastSquares

    return partial(AlternatingLeastSquares().solver, regularization=hyper["regularization"], num_threads=threads)


def uniform(random: np.random.Generator, rows: int, factors: int) -> NDArray[np.float32]:
    """Numbers in [0, 1), shape (rows, factors), drawn in place and in the order of ``implicit``."""
    import numpy as np

    drawn = np.empty((rows, factors), np.float32)
    random.random(out=drawn, dtype=np.float32)
    return drawn


def gramian(item_factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """``Y'Y``, shape (factors, factors): the part of the fold-in that all users share."""
    return item_factors.T @ item_factors


def fold_in(
    shared: NDArray[np.float32],
    item_factors: NDArray[np.float32] | Rows,
    items: NDArray[np.integer[Any]],
    confidences: NDArray[np.float32],
    hyper: Mapping[str, Any],
) -> NDArray[np.float32]:
    """A user's vector from its history: ``(Y'Y + λI + Y'(C - I)Y)⁻¹ Y'Cp`` (Hu et al. 2008, equation 4).

    Parameters
    ----------
    shared
        ``gramian`` of the same factors.
    item_factors
        ``Y``, shape (items, factors).
    items, confidences
        The history, shape (n,) each.
    hyper
        As ``HYPER``.

    Returns
    -------
    NDArray
        Shape (factors,), float32; zeros for an empty history.
    """
    import numpy as np

    rows = item_factors[items]
    system = shared + rows.T @ (rows * (confidences - 1)[:, None])
    _add_ridge(system, confidences, hyper, other_rows=len(item_factors))
    solved: NDArray[np.float32] = np.linalg.solve(system, confidences @ rows)
    return solved


def contributions(
    shared: NDArray[np.float32],
    item_factors: NDArray[np.float32] | Rows,
    items: NDArray[np.integer[Any]],
    confidences: NDArray[np.float32],
    hyper: Mapping[str, Any],
) -> NDArray[np.float64]:
    """Contribution of each item of a history to the user's vector, which is linear in them for fixed confidences.

    The dot product of a contribution with another item's factors is what the item adds to that item's score (Hu et al.
    2008, section 5). The parameters are those of ``fold_in``.

    Returns
    -------
    NDArray
        Shape (n, factors); the sum over the rows is ``fold_in`` of the same arguments.
    """
    import numpy as np

    blocks = [slice(start, start + SPLIT_ROWS) for start in range(0, len(items), SPLIT_ROWS)]
    system = shared.astype(np.float64)
    for span in blocks:
        rows = item_factors[items[span]].astype(np.float64)
        system += rows.T @ (rows * (confidences[span] - 1)[:, None])
    _add_ridge(system, confidences, hyper, other_rows=len(item_factors))
    solved = np.empty((len(items), len(system)))
    for span in blocks:
        rows = item_factors[items[span]].astype(np.float64)
        solved[span] = np.linalg.solve(system, (rows * confidences[span, None]).T).T
    return solved


def _add_ridge(
    system: NDArray[Any], confidences: NDArray[np.float32], hyper: Mapping[str, Any], *, other_rows: int
) -> None:
    """Add ``λI`` to a system of one user with so many items in all."""
    import numpy as np

    weight = float((confidences - 1).sum())
    exponent = hyper.get("frequency_scaling", 0.0)
    ridge = ials_exact.ridge(hyper["regularization"], exponent, weight=weight, other_rows=other_rows)
    system.reshape(-1)[:: len(system) + 1] += np.float32(ridge)
