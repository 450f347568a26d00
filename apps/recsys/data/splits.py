"""What is held out for evaluation, kept beside the history as ``heldout.*.npy``.

``history`` stays complete, so that a served user's whole past counts; evaluation and training subtract.
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
TIMED = ("leave-last", "temporal")
"""Those that look at when something was had."""
SAMPLED_TIMES = 1 << 20
"""Times that stand for all where there are more: evenly spread over the users."""
HOLDOUT_SHARE = 0.1
"""Users held out of training (user-holdout)."""
SCORED_SHARE = 0.2
"""Share of a held-out user's items that is scored; the rest is folded in."""
MOST_VALIDATION_USERS = 2000
"""Users whose hidden items training looks at after each epoch."""
LEAST_ITEMS = 5
"""A held-out user with fewer items is not scored: a fifth of it would be nothing."""


def hold_out(directory: Path, kind: str, seed: int) -> int:
    """Choose and write ``heldout.users.npy``, ``heldout.indptr.npy`` and ``heldout.items.npy``.

    ``user-holdout`` is strong generalisation (Liang et al., "Variational autoencoders for collaborative filtering",
    2018): a tenth of the users is unknown in training; 80 % of a held-out user's items are folded in, 20 % scored.
    ``leave-last`` scores every user's last item in time; ``temporal`` all that was had after one moment, the same for
    everyone: a fifth of it. Users who only come after it are scored with nothing known about them: to leave them out
    would flatter, to train on them would look ahead. ``random`` scores a fifth of every user's items (LightGCN's).

    Returns
    -------
    int
        How many users are scored.
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
    """Write scored items, user by user in increasing order, as ``HeldOut`` reads them; returns how many users."""
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
    """Rows of the users that ``user-holdout`` keeps out of training, increasing."""
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
        # Of several at the last moment, the last in the row.
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
    """After it comes ``SCORED_SHARE`` of all interactions, or as near to it as equal times allow."""
    import numpy as np

    step = -(-times.length // SAMPLED_TIMES)
    starts = range(0, times.length, BLOCK)
    some = np.concatenate([times[start : start + BLOCK][-start % step :: step] for start in starts])
    place = int((1 - SCORED_SHARE) * len(some))
    return float(np.partition(some, place)[place])


class HeldOut:
    """Scored items of a model folder, read row by row.

    Parameters
    ----------
    name
        ``"heldout"``: what the model's split held out; ``"validation"``: what training itself looks at.
    """

    def __init__(self, directory: Path, name: str = "heldout") -> None:
        self.users: NDArray[np.int32] = NpyReader(directory / f"{name}.users.npy")[:]
        self._items = History(directory, name)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def size(self) -> int:
        """Scored interactions in all."""
        return self._items.size

    def items(self, row: int) -> NDArray[np.int32]:
        """Scored items of the user ``users[row]``, increasing."""
        return self._items.items(row)

    def pairs(self, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Users from ``start`` to ``stop`` and their scored items, in order."""
        import numpy as np

        first, last = np.searchsorted(self.users, [start, stop])
        lengths = np.diff(self._items.indptr[first : last + 1])
        return np.repeat(self.users[first:last], lengths), self._items.items(int(first), int(last))

    def close(self) -> None:
        """Close the files."""
        self._items.close()


class Kept:
    """Which interactions are trained on.

    Parameters
    ----------
    heldout
        What the split scores, if there is one.
    whole_users
        Leave held-out users out altogether (user-holdout), not only their scored items (leave-last).
    validation
        What training itself looks at.
    """

    def __init__(
        self, history: History, heldout: HeldOut | None, *, whole_users: bool, validation: HeldOut | None = None
    ) -> None:
        self._history = history
        self._users = heldout.users if heldout is not None and whole_users else None
        self._hidden = [part for part in (validation, None if whole_users else heldout) if part is not None]

    @classmethod
    def of(cls, history: History, directory: Path, split: str, *, validation: HeldOut | None = None) -> Kept:
        """Of a split by its name, as it stands in ``directory``."""
        heldout = HeldOut(directory) if split != "none" else None
        return cls(history, heldout, whole_users=split == "user-holdout", validation=validation)

    def mask(self, start: int, stop: int) -> NDArray[np.bool_]:
        """For each interaction of the users ``start`` to ``stop`` whether it is."""
        import numpy as np

        indptr = self._history.indptr[start : stop + 1]
        user = np.repeat(np.arange(start, stop, dtype=np.int32), np.diff(indptr))
        keep = np.ones(len(user), bool)
        if self._users is not None:
            keep &= ~np.isin(user, self._users[slice(*np.searchsorted(self._users, [start, stop]))])
        if self._hidden:
            keys = _keys(user, self._history.items(start, stop))
            for part in self._hidden:
                keep[keys.searchsorted(_keys(*part.pairs(start, stop)))] = False
        return keep


def _keys(users: NDArray[np.int32], items: NDArray[np.int32]) -> NDArray[np.int64]:
    """A number for each pair, increasing where they are in order."""
    import numpy as np

    return (users.astype(np.int64) << 32) | items


def hide_for_validation(directory: Path, kept: Kept, history: History, seed: int) -> int:
    """Write ``validation.*.npy``: a fifth of the items of some training users; returns how many users."""
    import numpy as np

    count = min(MOST_VALIDATION_USERS, max(1, int(HOLDOUT_SHARE * history.rows)))
    sample = np.sort(np.random.default_rng([seed, 1]).permutation(history.rows)[:count])

    def chosen() -> Iterator[tuple[int, NDArray[Any]]]:
        for user in sample:
            items = history.items(user)[kept.mask(user, user + 1)]
            if len(items) >= LEAST_ITEMS:
                yield int(user), _some(items, [seed, 1, int(user)])

    return write(directory, "validation", chosen())


def forget_validation(directory: Path) -> None:
    """Remove what ``hide_for_validation`` wrote."""
    for path in directory.glob("validation.*.npy"):
        path.unlink()


def _some(items: NDArray[Any], seed: list[int]) -> NDArray[Any]:
    """A fifth of the items, increasing. A generator per user: the choice does not depend on who else is there."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(items))
    return np.sort(items[order[: int(SCORED_SHARE * len(items))]])


def known_rows(history: History, scored: NDArray[Any], user: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """A user's items and weights without the scored ones: what may be folded in, and is masked in the ranking."""
    import numpy as np

    items, values = history.items(user), history.values(user)
    keep = ~np.isin(items, scored, assume_unique=True)
    return items[keep], values[keep]
