"""Implicit ALS: training by ``implicit``, and the fold-in of a user from its history.

Objective (Hu, Koren, Volinsky, "Collaborative filtering for implicit feedback datasets", 2008): every pair counts
with confidence 1 and preference 0, an interaction with confidence ``alpha * weight(value)`` and preference 1.
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

HYPER: Mapping[str, Any] = {"alpha": 2.0, "regularization": 10.0, "iterations": 15, "weight": "log", "frequency": 0.0}
"""Hyper-parameters with their defaults (chosen on MovieLens-1M and Last.fm, see ``apps/recsys/bench``);
``frequency``: the exponent of ``exact.ridge``, 0 for the same regularisation everywhere, which ``implicit`` solves."""
FIRST_SCALE = 0.01
"""Factors start uniform in [0, 0.01), as ``implicit`` starts them."""


def first_state(sides: Sides, *, factors: int, seed: int) -> FactorState:
    """The factors that ``AlternatingLeastSquares(random_state=seed)`` starts from, drawn in place."""
    import numpy as np

    random = np.random.default_rng(seed)
    drawn = [uniform(random, side.rows, factors) for side in (sides.users, sides.items)]
    for first in drawn:
        first *= FIRST_SCALE
    return FactorState(*drawn)


def fit(
    sides: Sides,
    state: FactorState,
    *,
    hyper: Mapping[str, Any],
    threads: int,
    after_block: Callable[[FactorState], None],
) -> NDArray[np.float32]:
    """Train on from a state, and return the items' factors, shape (items, factors).

    Without ``frequency`` the result is that of ``AlternatingLeastSquares(random_state=seed).fit(matrix)`` to the bit,
    however the sides are cut into blocks: a row is solved on its own, from the other side's factors and from what it
    was before.

    Parameters
    ----------
    state
        Where to begin (``first_state``); changed in place.
    after_block
        Called with the state after each block of rows; what it raises ends the training.

    Raises
    ------
    ArithmeticError
        If factors are not finite in the end.
    """
    import implicit.cpu.als  # noqa: F401  BLAS must be loaded before it can be limited
    import numpy as np
    from threadpoolctl import threadpool_limits

    # The solvers run their own threads; BLAS below them must not (implicit's check warns of a tenfold slowdown).
    with threadpool_limits(1, "blas"):
        solve = _solver(hyper, threads)
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


def _solver(hyper: Mapping[str, Any], threads: int) -> Callable[[Any, Any, Any], None]:
    """Solves rows in place, from their confidences and the other side's factors."""
    if hyper["frequency"]:
        ridge = {"regularization": hyper["regularization"], "exponent": hyper["frequency"]}
        return partial(ials_exact.solve, **ridge, threads=threads)
    from implicit.cpu.als import AlternatingLeastSquares

    return partial(AlternatingLeastSquares().solver, regularization=hyper["regularization"], num_threads=threads)


def uniform(random: np.random.Generator, rows: int, factors: int) -> NDArray[np.float32]:
    """Numbers in [0, 1), shape (rows, factors), drawn in place as ``implicit`` draws them."""
    import numpy as np

    drawn = np.empty((rows, factors), np.float32)
    random.random(out=drawn, dtype=np.float32)
    return drawn


def gramian(item_factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """``Y'Y``, shape (factors, factors): the part of the fold-in that all users share."""
    return item_factors.T @ item_factors


def fold_in(
    shared: NDArray[np.float32],
    item_factors: NDArray[np.float32],
    items: NDArray[np.integer[Any]],
    confidences: NDArray[np.float32],
    hyper: Mapping[str, Any],
) -> NDArray[np.float32]:
    """A user's vector from its history: ``(Y'Y + λI + Y'(C - I)Y)⁻¹ Y'Cp`` (Hu et al. 2008, equation 4).

    Parameters
    ----------
    shared
        ``gramian`` of the same factors.
    items, confidences
        The history, shape (n,).

    Returns
    -------
    NDArray
        Shape (factors,), float32; zeros for an empty history.
    """
    import numpy as np

    rows = item_factors[items]
    system = _system(shared, rows, confidences, hyper, others=len(item_factors))
    solved: NDArray[np.float32] = np.linalg.solve(system, confidences @ rows)
    return solved


def parts(
    shared: NDArray[np.float32],
    item_factors: NDArray[np.float32],
    items: NDArray[np.integer[Any]],
    confidences: NDArray[np.float32],
    hyper: Mapping[str, Any],
) -> NDArray[np.float64]:
    """What each item of a history adds to the user's vector, which is linear in them for fixed confidences.

    A part's product with an item's factors is what it adds to that item's score (Hu et al. 2008, section 5).

    Returns
    -------
    NDArray
        Shape (n, factors); the rows' sum is ``fold_in`` of the same arguments.
    """
    import numpy as np

    rows = item_factors[items].astype(np.float64)
    system = _system(shared, rows, confidences, hyper, others=len(item_factors))
    found: NDArray[np.float64] = np.linalg.solve(system, (rows * confidences[:, None]).T).T
    return found


def _system(
    shared: NDArray[np.float32],
    rows: NDArray[Any],
    confidences: NDArray[np.float32],
    hyper: Mapping[str, Any],
    *,
    others: int,
) -> NDArray[Any]:
    """``Y'Y + λI + Y'(C - I)Y`` for the ``rows`` of one user's items, in their precision."""
    import numpy as np

    system = shared + rows.T @ (rows * (confidences - 1)[:, None])
    weight = float((confidences - 1).sum())
    ridge = ials_exact.ridge(hyper["regularization"], hyper.get("frequency", 0.0), weight=weight, others=others)
    system[np.diag_indices_from(system)] += np.float32(ridge)
    return system
