"""The baseline model: every user gets the most popular items."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import Kept

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
