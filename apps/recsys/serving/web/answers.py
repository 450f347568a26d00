"""Answers to questions, as JSON in pieces: the code that runs in the thread of the model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from apps.recsys.planning.service.limits import EXPLAINED_AT_ONCE, MOST_NAMED
from apps.recsys.serving.feedback.journal import Event
from apps.recsys.serving.live import Live
from apps.recsys.serving.service import Packed, Ranked, RecommenderService, UnknownId
from apps.recsys.serving.web.questions import (
    Batch,
    Events,
    RecommendQuery,
    SearchQuery,
    Session,
    SimilarQuery,
    Unanswerable,
    UserQuery,
    check_size,
    texts,
)
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.serving.service import Allowed

Pieces = Iterator[bytes]
"""Parts of an answer, in order. The first one comes after all that may be refused."""


def recommend(live: Live, question: RecommendQuery) -> Pieces:
    """GET /recommend: a list for a user or for a history."""
    if (question.user is None) == (question.history is None):
        raise Unanswerable("give either user or history (ids separated by commas)")
    return _one(live.service(), question, question.user, question.history or ())


def for_user(live: Live, question: UserQuery, user: str) -> Pieces:
    """GET /users/{id}/recommend: a list for a user."""
    return _one(live.service(), question, user, ())


def _one(service: RecommenderService, question: UserQuery, user: str | None, history: Sequence[str]) -> Pieces:
    named = len(history) + len(question.exclude) + len(question.only or ())
    check_size(question, named=named)
    allowed = _allowed(service, question.only, question.exclude, question.where)
    lenient = question.fallback == "popular"
    ranked, fell_back = _ranked(
        service, user, history, question.k, allowed, keep_seen=question.keep_seen, lenient=lenient
    )
    return _list(service, ranked, question.explain, fell_back=fell_back)


def batch(live: Live, question: Batch) -> Pieces:
    """POST /recommend: lists for several users and histories."""
    import numpy as np

    service = live.service()
    users, histories = texts(question.users), [texts(ids) for ids in question.histories]
    exclude, only = texts(question.exclude), None if question.only is None else texts(question.only)
    candidates = None if question.candidates is None else texts(question.candidates)
    if candidates is not None and (only or exclude):
        raise Unanswerable("candidates are the items to rank: leave out only and exclude")
    if not (users or histories):
        raise Unanswerable("give users or histories")
    named = sum(map(len, (exclude, only or (), candidates or (), *histories)))
    check_size(question, named=named)
    allowed = _allowed(service, only if candidates is None else candidates, exclude, question.where)
    how: dict[str, Any] = {"keep_seen": question.keep_seen or candidates is not None}
    how["lenient"] = question.fallback == "popular"
    if not how["lenient"]:  # before anything is sent
        for user in users:
            if not service.has_user(user):
                raise UnknownId("user", user)
        service.rows([id_ for ids in histories for id_ in ids])
    asked: list[tuple[str | None, Sequence[str]]] = [
        *((user, ()) for user in users),
        *((None, ids) for ids in histories),
    ]

    # A list waits for its client, and others with it: as bits, or as nothing where the filter is kept anyway.
    bits, allowed = np.packbits(allowed) if isinstance(allowed, np.ndarray) else None, None

    def pieces() -> Pieces:
        yield b'{"lists":['
        for place, (user, history) in enumerate(asked):
            chosen = service.choice(question.where) if bits is None else _mask(bits, len(service.items))
            ranked, fell_back = _ranked(service, user, history, question.depth, chosen, **how)
            del chosen
            head = {} if user is None else {"user": user}
            yield b"," if place else b""
            yield from _list(service, ranked, question.explain, fell_back=fell_back, **head)
        yield b"]}"

    return pieces()


def session(live: Live, question: Session) -> Pieces:
    """POST /session/recommend: a list for items with weights, of nobody in particular."""
    import numpy as np

    service = live.service()
    exclude, only = texts(question.exclude), None if question.only is None else texts(question.only)
    ids = texts([one.id for one in question.items])
    named = len(ids) + len(exclude) + len(only or ())
    check_size(question, named=named)
    allowed = _allowed(service, only, exclude, question.where)
    rows = service.items.rows(ids)
    present = rows >= 0
    if question.fallback == "none" and not present.all():
        raise UnknownId("item", ids[int(present.argmin())])
    if not present.any():
        return _list(service, service.popular(question.k, allowed), 0, fell_back=True)
    items, place = np.unique(rows[present], return_inverse=True)
    weights = np.array([one.weight for one in question.items], np.float32)[present]
    values = np.bincount(place, weights, len(items)).astype(np.float32)
    ranked = service.ranked_values(items, values, question.k, allowed, keep_seen=question.keep_seen)
    return _list(service, ranked, question.explain)


def similar(live: Live, question: SimilarQuery, item: str) -> Pieces:
    """GET /items/{id}/similar: the items nearest to one."""
    yield msgspec.json.encode({"items": live.service().similar(item, question.k)})


def search(live: Live, question: SearchQuery) -> Pieces:
    """GET /items: items by a part of their title or by their id, those that most users had first."""
    yield msgspec.json.encode({"items": live.service().found(question.q, question.k)})


def feedback(live: Live, question: Events) -> Pieces:
    """POST /feedback: events that count at once."""
    if live.feedback is None:
        raise BadInput("no log of feedback", public="feedback is not taken: the server was started without --feedback")
    valued = live.feedback.journal.has_values
    now, events = time.time(), []
    for one in question.events:
        if one.value is not None and not valued:
            raise Unanswerable("value: every interaction counts 1 in this model")
        value = 1.0 if one.value is None else one.value
        events.append(Event(str(one.user), str(one.item), value, now if one.time is None else one.time, one.id or ""))
    accepted, duplicates = live.feedback.take(events)
    yield msgspec.json.encode({"accepted": accepted, "duplicates": duplicates, "events": live.feedback.count})


def _allowed(
    service: RecommenderService, only: Sequence[str] | None, exclude: Sequence[str], where: str | None
) -> Allowed:
    """The items to choose from; ids that the model does not have change nothing."""
    import numpy as np

    allowed = None
    for ids, value in ((only, True), (exclude or None, False)):
        if ids is not None:
            rows = service.items.rows(ids[:MOST_NAMED]) if ids else np.zeros(0, np.int64)
            allowed = np.full(len(service.items), not value) if allowed is None else allowed
            allowed[rows[rows >= 0]] = value
    return service.choice(where, allowed)


def _mask(bits: NDArray[np.uint8], items: int) -> NDArray[np.bool_]:
    import numpy as np

    return np.unpackbits(bits, count=items).view(bool)


def _ranked(
    service: RecommenderService,
    user: str | None,
    history: Sequence[str],
    k: int,
    allowed: Allowed,
    *,
    keep_seen: bool,
    lenient: bool,
) -> tuple[Ranked, bool]:
    """The best items, and True where they are popular ones because nothing is known of the user."""
    if user is not None:
        if lenient and not service.has_user(user):
            return service.popular(k, allowed), True
        return service.ranked(user, (), k, allowed, keep_seen=keep_seen), False
    if history:
        rows = service.items.rows(history)
        present = rows >= 0
        if not (lenient or present.all()):
            raise UnknownId("item", history[int(present.argmin())])
        if present.any():
            return service.ranked_rows(rows[present], k, allowed, keep_seen=keep_seen), False
    return service.popular(k, allowed), True


def _list(
    service: RecommenderService, ranked: Ranked, explained: int, *, fell_back: bool = False, **head: str
) -> Pieces:
    """A list as an object: ``head``, the items, and ``fallback`` where they are popular ones."""
    if len(ranked.best) > EXPLAINED_AT_ONCE:
        ranked = replace(ranked, best=Packed(ranked.best))
    described = service.described(ranked, explained if len(ranked.items) else 0, rows=EXPLAINED_AT_ONCE)
    first = next(described, None)  # an explanation may be refused, before anything is sent
    start = msgspec.json.encode({**head, **({"fallback": "popular"} if fell_back else {})})
    start = start[:-1] + (b"," if len(start) > 2 else b"") + b'"items":['

    def pieces() -> Pieces:
        yield start
        if first is not None:
            yield msgspec.json.encode(first)
        together = 1 if explained else EXPLAINED_AT_ONCE
        while some := list(islice(described, together)):
            yield b"," + msgspec.json.encode(some)[1:-1]
        yield b"]}"

    return pieces()
