"""Users who are like one user.

Where a model has item vectors, a user is the vector that the model makes of his history (what ``recommend`` multiplies
with the items), and likeness is the cosine of two such vectors: the same taste, even without an item in common. A
linear model with the form ``filter`` has no vectors; there it is the cosine of two histories, in which an item counts
one over the number of its users: the same items, above all rare ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from apps.recsys.models import popularity
from apps.recsys.models.recommender import Recommender, has_prior
from apps.recsys.models.scorers import FactorScorer
from apps.recsys.models.top_k import top_k
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 1 << 15
"""Interactions that are read at a time; a single user may have more."""
SMALLEST = 1e-12
"""Smallest product of two lengths: a user without a length is like nobody."""


def nearest_users(
    model: Recommender, row: int, k: int, *, threads: int = 1, done: Callable[[int], object] = lambda users: None
) -> list[tuple[int, float]]:
    """The users who are most like the user ``row``, without himself.

    Parameters
    ----------
    model
        The model; every kind but ``popularity``.
    row
        The user.
    k
        Number of users.
    threads
        Threads of the computation.
    done
        Called with a number of users after each block of them.

    Returns
    -------
    list
        Row and cosine of each user, the nearest first; of equals the lower row first.

    Raises
    ------
    BadInput
        The user has no history.
    """
    import numpy as np

    if not len(model.history.items(row)):
        raise BadInput("this user has no item, so nobody is like him", public="user without a history")
    factors = model.factors
    block = _by_vectors(model, factors, row, threads) if factors is not None else _by_items(model, row)
    cosines = np.empty(model.history.rows, np.float32)
    for start, stop in model.history.blocks(BLOCK):
        cosines[start:stop] = block(start, stop)
        done(stop - start)
    cosines[row] = -np.inf
    return [(int(user), float(cosines[user])) for user in top_k(cosines, k)]


def _by_vectors(
    model: Recommender, factors: FactorScorer, row: int, threads: int
) -> Callable[[int, int], NDArray[np.float32]]:
    """A function that computes the cosines of a block of users with the user ``row``, by vectors."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from threadpoolctl import threadpool_limits

    history = model.history
    # The last number of every user's vector is 1 where that of an item is its bias or prior: no part of a taste.
    taste = slice(None, -1 if model.manifest["kind"] == "bpr" or has_prior(model.manifest) else None)
    own = factors.fold_in(history.items(row), history.values(row))[taste].astype(np.float64)
    length = float(np.linalg.norm(own))

    def block(start: int, stop: int) -> NDArray[np.float32]:
        offsets = history.indptr[start : stop + 1] - history.indptr[start]
        items, values = history.items(start, stop), history.values(start, stop)
        cosines = np.zeros(stop - start, np.float32)

        def compare(users: range) -> None:
            for user in users:
                some = slice(int(offsets[user]), int(offsets[user + 1]))
                if some.start < some.stop:
                    vector = factors.fold_in(items[some], values[some])[taste].astype(np.float64)
                    cosines[user] = vector @ own / max(length * float(np.linalg.norm(vector)), SMALLEST)

        with ThreadPoolExecutor(threads) as pool, threadpool_limits(1, "blas"):
            for _ in pool.map(compare, [range(first, stop - start, threads) for first in range(threads)]):
                pass  # raises what a thread raised
        return cosines

    return block


def _by_items(model: Recommender, row: int) -> Callable[[int, int], NDArray[np.float32]]:
    """The same by items in common."""
    import numpy as np

    history = model.history
    shares = 1 / np.maximum(popularity.counts(history, items=model.scorer.items), 1)
    common = np.zeros_like(shares)
    common[history.items(row)] = shares[history.items(row)]
    length = float(np.sqrt(common.sum()))

    def block(start: int, stop: int) -> NDArray[np.float32]:
        offsets, items = history.indptr[start : stop + 1] - history.indptr[start], history.items(start, stop)
        products, squares = (np.concatenate([[0.0], np.cumsum(one[items])]) for one in (common, shares))
        lengths = np.sqrt(np.diff(squares[offsets]))
        cosines: NDArray[np.float32] = (np.diff(products[offsets]) / np.maximum(length * lengths, SMALLEST)).astype(
            np.float32
        )
        return cosines

    return block
