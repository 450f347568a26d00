"""Hold items out for evaluation, as ``heldout.*.npy`` next to the history.

The history stays complete, so a served user's whole past counts; evaluation and training leave out what they must not
see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import BLOCK, History, NpyReader, NpyWriter
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = ("none", "user-holdout", "leave-last", "temporal", "random")
"""Values of ``--split``."""
TIMED = ("leave-last", "temporal")
"""Splits that need timestamps."""
SAMPLED_TIMES = 1 << 20
"""Largest number of timestamps that the moment of ``temporal`` is computed from, spread evenly over the users."""
HOLDOUT_SHARE = 0.1
"""Share of the users that ``user-holdout`` holds out of training."""
SCORED_SHARE = 0.2
"""Share of a user's items that is scored; the rest is folded in."""
MOST_VALIDATION_USERS = 2000
"""Largest number of users whose hidden items training is validated on."""
LEAST_ITEMS = 5
"""Fewest items of a user that is scored: a fifth of fewer is none."""


def reads_times(split: str, duplicates: str, needs_times: str) -> bool:
    """True if times are read: a split or an option needs them, or the last one of repeated rows counts."""
    return split in TIMED or duplicates == "last" or bool(needs_times)


def hold_out(directory: Path, kind: str, seed: int) -> int:
    """Choose and write ``heldout.users.npy``, ``heldout.indptr.npy`` and ``heldout.items.npy``.

    ``user-holdout`` is strong generalisation (Liang et al., "Variational autoencoders for collaborative filtering",
    2018): a tenth of the users is not trained on; 80 % of their items are folded in, 20 % scored. ``leave-last`` scores
    every user's last item in time. ``temporal`` scores all interactions after one moment, which is the same for all
    users and leaves a fifth of the interactions after it. Users who only appear after it are scored without a history,
    by popularity: leaving them out would flatter the model, and training on them would use the future. ``random``
    scores a fifth of every user's items, as LightGCN does.

    Parameters
    ----------
    directory
        Folder of the history.
    kind
        One of ``KINDS`` except ``"none"``.
    seed
        Seed of the random choices.

    Returns
    -------
    int
        Number of users to score.

    Raises
    ------
    BadInput
        No user has enough items.
    """
    history = History(directory)
    if kind == "leave-last":
        chosen = _leave_last(history, directory)
    elif kind == "temporal":
        chosen = _after(history, directory)
    else:
        users_of = held_out_users(history.rows, seed) if kind == "user-holdout" else range(history.rows)
        chosen = _fifths(history, users_of, seed)
    users = write(directory, "heldout", chosen)
    history.close()
    if not users:
        raise BadInput(f"--split {kind}: no user has enough items to hold some out", public="nothing to hold out")
    return users


def write(directory: Path, name: str, chosen: Iterable[tuple[int, NDArray[Any]]]) -> int:
    """Write items to score, as ``HeldOut`` reads them.

    Parameters
    ----------
    directory, name
        The files are ``NAME.users.npy``, ``NAME.indptr.npy`` and ``NAME.items.npy``.
    chosen
        Users in increasing order, each with its items.

    Returns
    -------
    int
        Number of users.
    """
    total = users = 0
    with (
        NpyWriter(directory / f"{name}.users.npy", "<i4") as rows,
        NpyWriter(directory / f"{name}.indptr.npy", "<i8") as indptr,
        NpyWriter(directory / f"{name}.items.npy", "<i4") as items,
    ):
        indptr.append(_array([0]))
        for user, scored in chosen:
            rows.append(_array([user]))
            items.append(scored)
            total, users = total + len(scored), users + 1
            indptr.append(_array([total]))
    return users


def _array(values: list[int]) -> NDArray[np.int64]:
    import numpy as np

    return np.array(values, np.int64)


def held_out_users(users: int, seed: int) -> NDArray[np.int64]:
    """Rows of the users that ``user-holdout`` holds out of training, increasing."""
    import numpy as np

    count = max(1, int(HOLDOUT_SHARE * users))
    return np.sort(np.random.default_rng(seed).permutation(users)[:count])


def _fifths(history: History, users: Iterable[int], seed: int) -> Iterator[tuple[int, NDArray[Any]]]:
    for user in users:
        items = history.items(user)
        if len(items) < LEAST_ITEMS:
            continue
        yield int(user), _some(items, [seed, int(user)])


def _leave_last(history: History, directory: Path) -> Iterator[tuple[int, NDArray[Any]]]:
    times = NpyReader(directory / "history.times.npy")
    for user in range(history.rows):
        items = history.items(user)
        if len(items) < 2:
            continue
        when = times[slice(int(history.indptr[user]), int(history.indptr[user + 1]))]
        # If several items have the last time, the last one in the row.
        last = len(when) - 1 - int(when[::-1].argmax())
        yield user, items[last : last + 1]
    times.close()


def _after(history: History, directory: Path) -> Iterator[tuple[int, NDArray[Any]]]:
    times = NpyReader(directory / "history.times.npy")
    moment = _moment(times)
    for start, stop in history.blocks():
        late = times[slice(int(history.indptr[start]), int(history.indptr[stop]))] > moment
        items, ends = history.items(start, stop), history.indptr[start : stop + 1] - history.indptr[start]
        for user, first, last in zip(range(start, stop), ends[:-1], ends[1:], strict=True):
            if (scored := items[first:last][late[first:last]]).size:
                yield user, scored
    times.close()


def _moment(times: NpyReader) -> float:
    """The time after which ``SCORED_SHARE`` of all interactions are, or as near to that as equal times allow."""
    import numpy as np

    step = -(-times.length // SAMPLED_TIMES)
    starts = range(0, times.length, BLOCK)
    some = np.concatenate([times[start : start + BLOCK][-start % step :: step] for start in starts])
    rank = int((1 - SCORED_SHARE) * len(some))
    return float(np.partition(some, rank)[rank])


class HeldOut:
    """Items to score, read user by user.

    Parameters
    ----------
    directory
        Folder of the files.
    name
        ``"heldout"`` for what the split held out, ``"validation"`` for what is hidden from training.
    """

    def __init__(self, directory: Path, name: str = "heldout") -> None:
        self.users: NDArray[np.int32] = NpyReader(directory / f"{name}.users.npy")[:]
        self._items = History(directory, name)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def size(self) -> int:
        """Number of items to score, of all users."""
        return self._items.size

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of items to score of each user, shape (users,)."""
        import numpy as np

        return np.diff(self._items.indptr)

    def items(self, row: int) -> NDArray[np.int32]:
        """Items of the user ``users[row]``, increasing."""
        return self._items.items(row)

    def pairs(self, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Pairs of user and item of the users ``start`` to ``stop``, in order: two arrays of one length."""
        import numpy as np

        first, last = np.searchsorted(self.users, [start, stop])
        lengths = np.diff(self._items.indptr[first : last + 1])
        return np.repeat(self.users[first:last], lengths), self._items.items(int(first), int(last))

    def close(self) -> None:
        """Close the files."""
        self._items.close()


class Kept:
    """Tells which interactions are trained on.

    Parameters
    ----------
    history
        All interactions.
    heldout
        Items that the split holds out; ``None``: there is no split.
    whole_users
        True to leave out held-out users entirely (``user-holdout``), False to leave out their scored items only.
    validation
        Items that are hidden from training, if any.
    """

    def __init__(
        self, history: History, heldout: HeldOut | None, *, whole_users: bool, validation: HeldOut | None = None
    ) -> None:
        self._history = history
        self._users = heldout.users if heldout is not None and whole_users else None
        self._hidden = [items for items in (validation, None if whole_users else heldout) if items is not None]

    @classmethod
    def of(cls, history: History, directory: Path, split: str, *, validation: HeldOut | None = None) -> Kept:
        """Open the held-out items of a split, one of ``KINDS``, in ``directory``."""
        heldout = HeldOut(directory) if split != "none" else None
        return cls(history, heldout, whole_users=split == "user-holdout", validation=validation)

    def mask(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Mask of the trained interactions of the users ``start`` to ``stop``, in the order of the history."""
        import numpy as np

        indptr = self._history.indptr[start : stop + 1]
        user = np.repeat(np.arange(start, stop, dtype=np.int32), np.diff(indptr))
        keep = np.ones(len(user), bool)
        if self._users is not None:
            keep &= ~np.isin(user, self._users[slice(*np.searchsorted(self._users, [start, stop]))])
        if self._hidden:
            keys = _keys(user, self._history.items(start, stop))
            for items in self._hidden:
                keep[keys.searchsorted(_keys(*items.pairs(start, stop)))] = False
        return keep


def _keys(users: NDArray[np.int32], items: NDArray[np.int32]) -> NDArray[np.int64]:
    """A number per pair, increasing if the pairs are in order."""
    import numpy as np

    return (users.astype(np.int64) << 32) | items


def hide_for_validation(directory: Path, kept: Kept, history: History, seed: int) -> int:
    """Write ``validation.*.npy``: a fifth of the trained items of a tenth of the users, at most 2,000.

    Parameters
    ----------
    directory
        Folder of the history.
    kept
        Interactions that are trained on without a validation.
    history
        All interactions.
    seed
        Seed of the random choices.

    Returns
    -------
    int
        Number of users with hidden items.
    """
    count = min(MOST_VALIDATION_USERS, max(1, int(HOLDOUT_SHARE * history.rows)))
    sample = sampled_users(history.rows, count, seed)

    def chosen() -> Iterator[tuple[int, NDArray[Any]]]:
        for user in sample:
            items = history.items(user)[kept.mask(user, user + 1)]
            if len(items) >= LEAST_ITEMS:
                yield int(user), _some(items, [seed, 1, int(user)])

    return write(directory, "validation", chosen())


def sampled_users(users: int, count: int, seed: int) -> NDArray[np.int64]:
    """Rows of the users whose items are hidden from training, increasing."""
    import numpy as np

    return np.sort(np.random.default_rng([seed, 1]).permutation(users)[:count])


def forget_validation(directory: Path) -> None:
    """Remove what ``hide_for_validation`` wrote."""
    forget(directory, "validation")


def forget(directory: Path, name: str) -> None:
    """Remove what ``write`` wrote."""
    for path in directory.glob(f"{name}.*.npy"):
        path.unlink()


def _some(items: NDArray[Any], seed: list[int]) -> NDArray[Any]:
    """A fifth of the items, increasing. A seed per user makes the choice independent of the other users."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(items))
    return np.sort(items[order[: int(SCORED_SHARE * len(items))]])


def fold_in_rows(history: History, scored: NDArray[Any], user: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """A user's items and weights without the scored ones: they are folded in, and not ranked.

    Parameters
    ----------
    history
        All interactions.
    scored
        Items to leave out.
    user
        Row of the user.
    """
    import numpy as np

    items, values = history.items(user), history.values(user)
    keep = ~np.isin(items, scored, assume_unique=True)
    return items[keep], values[keep]
