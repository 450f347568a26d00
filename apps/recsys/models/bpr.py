"""Bayesian personalised ranking: training by ``implicit``, epoch by epoch.

Objective (Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", 2009): an item that a user had
scores above one that it did not have. ``implicit`` draws the negative in proportion to its count.

The last column of the items' factors is the item's bias; that of every user is 1. Values of interactions are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.recsys.models.als.factor_state import FactorState
from apps.recsys.models.als.ials import uniform

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HYPER: Mapping[str, Any] = {
    "learning_rate": 0.01,
    "regularization": 0.01,
    "iterations": 40,
    "user_regularization": 0.2,
}
"""Hyper-parameters with their defaults (chosen on MovieLens-1M, see ``docs/recsys.md``).

``user_regularization`` is that of the fold-in (``user_encoders.fold_in_newton``).
"""
UNWEIGHTED = {"weight": "binary", "alpha": 1.0}
"""Hyper-parameters of ``als_matrices.training_matrix`` that ignore the values."""
COMPARED = 512
"""Items that the fold-in uses as negatives."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """The training interactions by user, 8 bytes each.

    Attributes
    ----------
    users, items
        User and item of each interaction, shape (interactions,).
    indptr
        Offsets of the users' interactions, shape (users + 1,).
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    indptr: NDArray[np.integer[Any]]

    @classmethod
    def of(cls, matrix: Any) -> Pairs:
        """Take the interactions of a SciPy CSR matrix (users, items), and free its values."""
        import numpy as np

        matrix.data = matrix.data[:0]
        owners = np.repeat(np.arange(matrix.shape[0], dtype=matrix.indices.dtype), np.diff(matrix.indptr))
        return cls(owners, matrix.indices, matrix.indptr)

    def compared(self) -> NDArray[np.int32]:
        """Draw ``COMPARED`` items in proportion to their counts, as training does."""
        import numpy as np

        drawn = np.random.default_rng(0).integers(0, len(self.items), COMPARED)
        return self.items[np.sort(drawn)]


def first_state(pairs: Pairs, *, items: int, factors: int, seed: int) -> FactorState:
    """The factors that ``BayesianPersonalizedRanking(factors - 1, random_state=seed)`` starts from."""
    import numpy as np

    random = np.random.default_rng(seed)
    by_item = _first_factors(random, items, factors)
    by_item[np.bincount(pairs.items, minlength=items) == 0] = 0
    by_user = _first_factors(random, len(pairs.indptr) - 1, factors)
    by_user[:, -1] = 1
    return FactorState(by_user, by_item)


def _first_factors(random: np.random.Generator, rows: int, factors: int) -> NDArray[np.float32]:
    import numpy as np

    first = uniform(random, rows, factors)
    first -= np.float32(0.5)
    first /= np.float32(factors - 1)
    return first


def fit(
    pairs: Pairs,
    state: FactorState,
    *,
    hyper: Mapping[str, Any],
    threads: int,
    seed: int,
    after_epoch: Callable[[FactorState], None],
) -> NDArray[np.float32]:
    """Train from a state to the last epoch.

    Each epoch has its own random numbers, so a training that continues draws the same ones. With several threads, which
    write to the same rows without locks, no two runs are equal.

    Parameters
    ----------
    pairs
        The interactions.
    state
        Initial state (``first_state``); changed in place. Its sweeps are epochs.
    hyper
        As ``HYPER``.
    threads
        Threads that train.
    seed
        Seed of the random numbers.
    after_epoch
        Called with the state after each epoch; an exception that it raises ends the training.

    Returns
    -------
    NDArray
        The items' factors, shape (items, factors).

    Raises
    ------
    ArithmeticError
        The factors are not finite.
    """
    import numpy as np
    from implicit.cpu.bpr import RNGVector, bpr_update

    rates = float(hyper["learning_rate"]), float(hyper["regularization"])
    while state.sweep < hyper["iterations"]:
        seeds = np.random.default_rng([seed, state.sweep]).integers(0, 2**31, size=threads, dtype=np.int64)
        random = RNGVector(threads, len(pairs.items) - 1, seeds)
        # The last two arguments: threads, and True to skip pairs whose negative the user had.
        bpr_update(random, pairs.users, pairs.items, pairs.indptr, state.users, state.items, *rates, threads, True)
        if not np.isfinite(state.items.sum(dtype=np.float64)):
            raise ArithmeticError("the factors are not finite; try a smaller learning_rate")
        state.sweep += 1
        after_epoch(state)
    return state.items
