"""The baseline model: every user gets the most popular items."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import Kept
from apps.recsys.models.top_k import top_k

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def fit(history: History, kept: Kept, *, items: int) -> NDArray[np.float32]:
    """Share of the users that had each item.

    Parameters
    ----------
    history
        All interactions.
    kept
        The interactions that are trained on.
    items
        Number of items.

    Returns
    -------
    NDArray
        One factor per item, shape (items, 1); the vector of every user is 1.
    """
    import numpy as np

    counts = np.zeros(items, np.int64)
    for start, stop in history.blocks():
        counts += np.bincount(history.items(start, stop)[kept.mask(start, stop)], minlength=items)
    return (counts / history.rows).astype(np.float32)[:, None]


def counts(history: History, *, items: int) -> NDArray[np.int64]:
    """Number of users that had each item, in all of a model's history: shape (items,)."""
    import numpy as np

    numbers = np.zeros(items, np.int64)
    for start, stop in history.blocks():
        np.add.at(numbers, history.items(start, stop), 1)
    return numbers


def best(history: History, k: int, *, items: int, allowed: NDArray[np.bool_] | None = None) -> list[tuple[int, float]]:
    """The items that most users had: what is shown to a user without a history.

    Parameters
    ----------
    history
        All interactions.
    k
        Number of items.
    items
        Number of items of the model.
    allowed
        Mask of items that may be recommended, shape (items,); ``None``: all.

    Returns
    -------
    list
        Row and number of users of each item, the largest first; of equal numbers the lower row first.
    """
    import numpy as np

    scores = counts(history, items=items).astype(np.float32)
    if allowed is not None:
        scores[~allowed] = -np.inf
    return [(int(row), float(scores[row])) for row in top_k(scores, k)]
