"""Feedback that counts at once: checked, written to the log, and part of the next answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.models.linear.filter import FilterScorer
from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.planning.service.limits import MOST_OF_USER
from apps.recsys.serving.feedback.fresh import Fresh
from apps.recsys.serving.feedback.journal import Event, Journal
from apps.recsys.serving.service import RecommenderService, UnknownId
from common.errors import BadInput, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 1000
"""Events whose ids are looked up at a time."""
AHEAD_SECONDS = 60
"""How far a sender's clock may be ahead."""
COLUMNS = {"user": "user", "item": "item", "value": "value", "time": "time"}
"""Names in the log for a model that does not say what its columns were called."""


class Full(Exception):
    """There is no room for more events."""


def journal_for(path: Path, service: RecommenderService, manifest: RecommenderManifest, *, sync: bool) -> Journal:
    """The log of a model, with the names of its columns; raises as ``Journal``."""
    columns: Any = manifest.get("columns", COLUMNS)
    return Journal(path, columns, whole=(service.users.whole, service.items.whole), sync=sync)


class Feedback:
    """Events since the model was made.

    Parameters
    ----------
    journal
        Their log.
    capacity
        Most events.
    """

    def __init__(self, journal: Journal, capacity: int) -> None:
        self.journal, self.capacity = journal, capacity
        self.skipped = 0
        """Events of the log whose items the model does not have."""
        self._service: RecommenderService | None = None
        self._fresh: Fresh | None = None

    @property
    def count(self) -> int:
        """Number of events that count."""
        return 0 if self._fresh is None else self._fresh.count

    def attach(self, service: RecommenderService, manifest: RecommenderManifest) -> None:
        """Count the log's events for a model.

        Raises
        ------
        BadInput
            The log is damaged, or has more events than there is room for.
        """
        rule, least = manifest.get("duplicates", "sum"), manifest.get("min_value", 0.0)
        self._service = service
        self._fresh = service.fresh = Fresh(len(service.users), self.capacity, duplicates=rule, least=least)
        self._teach(service, self._fresh)  # without events too: a large filter scores in passes, as it is priced
        self.skipped = 0
        self.journal.rewind(manifest.get("feedback"))
        self.read()

    def detach(self) -> None:
        """Let the model leave memory."""
        self._service = self._fresh = None

    def read(self) -> None:
        """Count what the log has more than was read: events of other workers.

        Raises
        ------
        BadInput
            As ``attach``.
        """
        if self._fresh is None or not self.journal.grown():
            return
        events = self.journal.read()
        while some := list(islice(events, BLOCK)):
            if len(some) > self._fresh.room:
                raise BadInput(
                    f"the feedback log has more than {self.capacity:,} events: add it to the model by recsys update and"
                    " begin a new log, or give --feedback-events",
                    public="the feedback log is full",
                )
            self._count(some)

    def take(self, events: Sequence[Event]) -> tuple[int, int]:
        """Write events to the log and count them, all or none.

        Returns
        -------
        tuple
            Numbers of events that are new, and of those that were there before.

        Raises
        ------
        UnknownId
            An item is not in the model.
        UsageError
            A user's id cannot be one, an event is of the future, or a user has too many.
        Full, NoRoom, BadInput
            There are too many events, or the disk is full; as ``read``.
        """
        service, fresh = self._service, self._fresh
        assert service is not None and fresh is not None
        self._check(service, events)
        with self.journal.appending():
            self.read()
            new: dict[object, Event] = {}
            for event in events:
                if not fresh.has(event):
                    new.setdefault(event.id or event, event)
            if len(new) > fresh.room:
                raise Full(f"there are {fresh.count:,} events since the model was made; add them by recsys update")
            self._check_users(service, fresh, list(new.values()))
            if new:
                self.journal.append(list(new.values()))
                self._count(list(new.values()))
        return len(new), len(events) - len(new)

    def _check(self, service: RecommenderService, events: Sequence[Event]) -> None:
        latest = time.time() + AHEAD_SECONDS
        for event in events:
            if not service.users.possible(event.user) or not event.user:
                raise UsageError("a user's id is none that this model could have")
            if event.time > latest:
                raise UsageError("an event is dated in the future")
        rows = service.items.rows([event.item for event in events])
        if (rows < 0).any():
            raise UnknownId("item", events[int((rows < 0).argmax())].item)

    def _check_users(self, service: RecommenderService, fresh: Fresh, events: Sequence[Event]) -> None:
        more = Counter(event.user for event in events)
        for id_, row in zip(more, service.users.rows(list(more)) if more else (), strict=True):
            number = fresh.user(id_) if row < 0 else int(row)
            had = 0 if number is None else fresh.events_of(number)
            if had + more[id_] > MOST_OF_USER:
                raise UsageError(f"a user would have {had + more[id_]:,} events; at most {MOST_OF_USER:,} count")

    def _count(self, events: Sequence[Event]) -> None:
        service, fresh = self._service, self._fresh
        assert service is not None and fresh is not None
        users: NDArray[np.int64] = service.users.rows([event.user for event in events])
        items: NDArray[np.int64] = service.items.rows([event.item for event in events])
        history, counts = service.recommender.history, service.count()
        for event, user, item in zip(events, users.tolist(), items.tolist(), strict=True):
            if item < 0:
                self.skipped += 1
            elif not fresh.has(event) and fresh.add(event, user if user >= 0 else None, item, history):
                counts[item] += 1
        self._teach(service, fresh)

    def _teach(self, service: RecommenderService, fresh: Fresh) -> None:
        if isinstance(scorer := service.recommender.scorer, FilterScorer):
            fresh.teach(scorer, scorer.counts)
