"""The model to beat: every user is shown what most users had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.recsys.history import History
from apps.recsys.ials import kept
from apps.recsys.split import HeldOut

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def fit(history: History, heldout: HeldOut | None, *, whole_users: bool, items: int) -> NDArray[np.float32]:
    """Share of the training users that had each item, as one factor: shape (items, 1); every user's vector is 1."""
    import numpy as np

    counts = np.zeros(items, np.int64)
    for start, stop in history.blocks():
        keep = kept(history, heldout, start, stop, whole_users=whole_users)
        counts += np.bincount(history.items(start, stop)[keep], minlength=items)
    return (counts / history.rows).astype(np.float32)[:, None]
