"""The model to beat: every user is shown what most users had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import Kept

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def fit(history: History, kept: Kept, *, items: int) -> NDArray[np.float32]:
    """Share of the users that had each item, as one factor: shape (items, 1); every user's vector is 1."""
    import numpy as np

    counts = np.zeros(items, np.int64)
    for start, stop in history.blocks():
        counts += np.bincount(history.items(start, stop)[kept.mask(start, stop)], minlength=items)
    return (counts / history.rows).astype(np.float32)[:, None]
