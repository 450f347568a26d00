"""What is held out for evaluation, kept beside the history as ``heldout.*.npy``.

``history`` stays complete, so that a served user's whole past counts; evaluation and training subtract.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.history import History, NpyReader, NpyWriter
from common.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = ("none", "user-holdout", "leave-last")
HOLDOUT_SHARE = 0.1
"""Users held out of training (user-holdout)."""
SCORED_SHARE = 0.2
"""Share of a held-out user's items that is scored; the rest is folded in."""
LEAST_ITEMS = 5
"""A held-out user with fewer items is not scored: a fifth of it would be nothing."""


def hold_out(directory: Path, kind: str, seed: int) -> int:
    """Choose and write ``heldout.users.npy``, ``heldout.indptr.npy`` and ``heldout.items.npy``.

    ``user-holdout`` is strong generalisation (Liang et al., "Variational autoencoders for collaborative filtering",
    2018): a tenth of the users is unknown in training; 80 % of a held-out user's items are folded in, 20 % scored.
    ``leave-last`` scores every user's last item in time.

    Returns
    -------
    int
        How many users are scored.
    """
    history = History(directory)
    chosen = _user_holdout(history, seed) if kind == "user-holdout" else _leave_last(history, directory)
    total = users = 0
    with (
        NpyWriter(directory / "heldout.users.npy", "<i4") as rows,
        NpyWriter(directory / "heldout.indptr.npy", "<i8") as indptr,
        NpyWriter(directory / "heldout.items.npy", "<i4") as items,
    ):
        indptr.append(_array([0]))
        for user, scored in chosen:
            rows.append(_array([user]))
            items.append(scored)
            total, users = total + len(scored), users + 1
            indptr.append(_array([total]))
    history.close()
    if not users:
        raise InputError(f"--split {kind}: no user has enough items to hold some out", public="nothing to hold out")
    return users


def _array(values: list[int]) -> NDArray[np.int64]:
    import numpy as np

    return np.array(values, np.int64)


def held_out_users(users: int, seed: int) -> NDArray[np.int64]:
    """Rows of the users that ``user-holdout`` keeps out of training, increasing."""
    import numpy as np

    count = max(1, int(HOLDOUT_SHARE * users))
    return np.sort(np.random.default_rng(seed).permutation(users)[:count])


def _user_holdout(history: History, seed: int) -> Iterator[tuple[int, NDArray[Any]]]:
    import numpy as np

    for user in held_out_users(history.rows, seed):
        items = history.items(user)
        if len(items) < LEAST_ITEMS:
            continue
        # A generator per user: the choice does not depend on who else is in the data.
        order = np.random.default_rng([seed, int(user)]).permutation(len(items))
        yield int(user), np.sort(items[order[: int(SCORED_SHARE * len(items))]])


def _leave_last(history: History, directory: Path) -> Iterator[tuple[int, NDArray[Any]]]:
    times = NpyReader(directory / "history.times.npy")
    for user in range(history.rows):
        items = history.items(user)
        if len(items) < 2:
            continue
        when = times[slice(int(history.indptr[user]), int(history.indptr[user + 1]))]
        # Of several at the last moment, the last in the row.
        last = len(when) - 1 - int(when[::-1].argmax())
        yield user, items[last : last + 1]
    times.close()


class HeldOut:
    """The held-out items of a model folder, read row by row."""

    def __init__(self, directory: Path) -> None:
        self.users: NDArray[np.int32] = NpyReader(directory / "heldout.users.npy")[:]
        self._items = History(directory, "heldout")

    def __len__(self) -> int:
        return len(self.users)

    @property
    def size(self) -> int:
        """Held-out interactions in all."""
        return self._items.size

    def items(self, row: int) -> NDArray[np.int32]:
        """Scored items of the user ``users[row]``, increasing."""
        return self._items.items(row)

    def close(self) -> None:
        """Close the files."""
        self._items.close()


def known_rows(history: History, scored: NDArray[Any], user: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """A user's items and weights without the scored ones: what may be folded in, and is masked in the ranking."""
    import numpy as np

    items, values = history.items(user), history.values(user)
    keep = ~np.isin(items, scored, assume_unique=True)
    return items[keep], values[keep]
