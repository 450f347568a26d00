"""Interactions since the model was made, in memory: the events of the log by the model's rows."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from apps.recsys.models.linear.filter import FilterScorer
from apps.recsys.serving.feedback.journal import Event

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.data.csr_store import History


class Fresh:
    """Events by rows.

    Parameters
    ----------
    users
        Number of users of the model; new ones get the next numbers.
    capacity
        Most events.
    duplicates
        What repeated events of a user and an item count, as in training: ``sum``, ``last`` or ``once``.
    least
        Events with a smaller value count nothing, as in training.
    """

    def __init__(self, users: int, capacity: int, *, duplicates: str = "sum", least: float = 0.0) -> None:
        import numpy as np

        self.count, self._old = 0, users
        self._duplicates, self._least = duplicates, least
        self._users, self._items = np.full(capacity, -1, np.int32), np.zeros(capacity, np.int32)
        self._values = np.zeros(capacity, np.float32)
        self._keys = np.zeros(capacity, np.uint64)
        """What makes an event the same as another one."""
        self._new: dict[str, int] = {}
        """Numbers of new users."""
        self._pairs: list[int] = []
        """Events of a pair that neither the model nor an earlier event has."""

    @property
    def room(self) -> int:
        """Number of further events."""
        return len(self._users) - self.count

    @property
    def users(self) -> int:
        """Number of users, with the new ones."""
        return self._old + len(self._new)

    def user(self, id_: str) -> int | None:
        """Number of a new user; ``None`` if there is none."""
        return self._new.get(id_)

    def events_of(self, row: int) -> int:
        """Number of a user's events."""
        return int((self._users[: self.count] == row).sum())

    def has(self, event: Event) -> bool:
        """True if the event was counted before: the same id, or without one the same user, item, value and time."""
        return bool((self._keys[: self.count] == _key(event)).any())

    def add(self, event: Event, row: int | None, item: int, history: History) -> bool:
        """Count an event.

        Parameters
        ----------
        event
            The event.
        row, item
            Rows of its user, ``None`` for a new one, and of its item.
        history
            Interactions of the model.

        Returns
        -------
        bool
            True if the user did not have the item before.
        """
        if row is None:
            row = self._new.setdefault(event.user, self.users)
        first = not self._had(row, item, history)
        place = self.count
        counts = event.value >= self._least
        self._users[place] = row if counts else -1
        self._items[place], self._values[place], self._keys[place] = item, event.value, _key(event)
        self.count += 1
        if first and counts:
            self._pairs.append(place)
        return first and counts

    def merged(
        self, row: int, items: NDArray[Any], values: NDArray[np.float32]
    ) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """A user's history with his events: increasing rows of items, and their values.

        Parameters
        ----------
        row
            The user.
        items, values
            His history in the model, shape (n,) each.
        """
        import numpy as np

        places = np.flatnonzero(self._users[: self.count] == row)
        if not len(places):
            return items, values
        everything = np.concatenate([items, self._items[places]])
        worth = np.concatenate([values, self._values[places]])
        if self._duplicates == "once":
            worth[:] = 1
        merged, last = np.unique(everything[::-1], return_index=True)
        if self._duplicates == "sum":
            place = np.searchsorted(merged, everything)
            return merged, np.bincount(place, worth, len(merged)).astype(np.float32)
        return merged, worth[::-1][last]

    def teach(self, scorer: FilterScorer, counts: NDArray[np.int32]) -> None:
        """Let a linear filter score by the events too: everybody's lists change."""
        import numpy as np

        from apps.recsys.models.linear.log import Added

        pairs = np.array(self._pairs, np.int64)
        items = self._items[pairs]
        added = Added(self._users[pairs], items, (self.users, scorer.items))
        scorer.add(added, counts + np.bincount(items, minlength=len(counts)).astype(np.int32))

    def _had(self, row: int, item: int, history: History) -> bool:
        some = slice(0, self.count)
        if ((self._users[some] == row) & (self._items[some] == item)).any():
            return True
        return row < self._old and bool((history.items(row) == item).any())


def _key(event: Event) -> int:
    text = f"id {event.id}" if event.id else f"{event.user}\0{event.item}\0{event.value!r}\0{event.time!r}"
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
