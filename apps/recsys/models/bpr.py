"""Bayesian personalised ranking: training by ``implicit``, epoch by epoch.

Objective (Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", 2009): an item that a user had
scores above one that it did not have. ``implicit`` draws the other item in proportion to how many had it.

The last column of the items' factors is the item's bias; that of every user is 1. Values of interactions do not count.
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
"""Hyper-parameters with their defaults (chosen on MovieLens-1M, see ``docs/recsys.md``); ``user_regularization``: of a
user that is found anew (``encoders.pairwise``)."""
UNWEIGHTED = {"weight": "binary", "alpha": 1.0}
"""How ``sides.training_matrix`` weighs interactions where their values do not count."""
COMPARED = 512
"""Items that stand for those a user did not have when it is found anew."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """The interactions to train on, by user: 8 bytes each.

    Attributes
    ----------
    users, items
        Rows of each interaction, shape (interactions,).
    indptr
        Where each user's begin, shape (users + 1,).
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    indptr: NDArray[np.integer[Any]]

    @classmethod
    def of(cls, matrix: Any) -> Pairs:
        """Of a SciPy CSR matrix, whose values are let go."""
        import numpy as np

        matrix.data = matrix.data[:0]
        owners = np.repeat(np.arange(matrix.shape[0], dtype=matrix.indices.dtype), np.diff(matrix.indptr))
        return cls(owners, matrix.indices, matrix.indptr)

    def compared(self) -> NDArray[np.int32]:
        """``COMPARED`` items, drawn as training draws them: each as often as it was had."""
        import numpy as np

        places = np.random.default_rng(0).integers(0, len(self.items), COMPARED)
        return self.items[np.sort(places)]


def first_state(pairs: Pairs, *, items: int, factors: int, seed: int) -> FactorState:
    """The factors that ``BayesianPersonalizedRanking(factors - 1, random_state=seed)`` starts from, drawn in place."""
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
    """Train on from a state, and return the items' factors, shape (items, factors).

    Each epoch draws from a stream of its own, so that one which begins where another run stopped draws the same. With
    several threads, which write to the same rows without waiting for each other, no two runs are alike.

    Parameters
    ----------
    state
        Where to begin (``first_state``); changed in place. Its sweeps are epochs.
    after_epoch
        Called with the state after each epoch; what it raises ends the training.

    Raises
    ------
    ArithmeticError
        If factors are not finite.
    """
    import numpy as np
    from implicit.cpu.bpr import RNGVector, bpr_update

    rates = float(hyper["learning_rate"]), float(hyper["regularization"])
    while state.sweep < hyper["iterations"]:
        seeds = np.random.default_rng([seed, state.sweep]).integers(0, 2**31, size=threads, dtype=np.int64)
        random = RNGVector(threads, len(pairs.items) - 1, seeds)
        # Its last two arguments: threads, and whether an item that the user had is passed over as the other one.
        bpr_update(random, pairs.users, pairs.items, pairs.indptr, state.users, state.items, *rates, threads, True)
        if not np.isfinite(state.items.sum(dtype=np.float64)):
            raise ArithmeticError("the factors are not finite; try a smaller learning_rate")
        state.sweep += 1
        after_epoch(state)
    return state.items
