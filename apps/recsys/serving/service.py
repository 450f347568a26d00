"""A model with its ids and titles, which answers by ids: what the command line and the server share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from apps.recsys.data.attributes.passing import Kept
from apps.recsys.data.id_table import IdTable
from apps.recsys.models import popularity
from apps.recsys.models.likeness.diversity import diverse, shortlist
from apps.recsys.models.likeness.neighbours import nearest_users
from apps.recsys.models.recommender import Recommender
from apps.recsys.models.scan.choice import Choice
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.serving.feedback.fresh import Fresh

    Allowed = NDArray[np.bool_] | Choice | None
    """Items that may be recommended; ``None``: all."""


class UnknownId(BadInput):
    """An id that is not in the model.

    Parameters
    ----------
    what
        ``"user"`` or ``"item"``.
    id_
        The id.
    """

    def __init__(self, what: str, id_: str) -> None:
        super().__init__(f"{what} {id_!r} is not in the model", public=f"unknown {what}")


TRIED = 50
"""Users for whom lists are made at the start, to say how long one takes."""
EXPLAINED_ROWS = 64
"""Recommendations that are explained at a time."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """The items of a history with their values, shape (n,) each, and the best rows with their scores."""

    items: NDArray[Any]
    values: NDArray[np.float32]
    best: Sequence[tuple[int, float]]


class Packed(Sequence[tuple[int, float]]):
    """Rows and their scores in 12 bytes each, where a list waits to be sent: as tuples they take 130.

    Parameters
    ----------
    best
        Rows and scores.
    """

    def __init__(self, best: Sequence[tuple[int, float]]) -> None:
        import numpy as np

        self._rows = np.array([row for row, _ in best], np.int32)
        self._scores = np.array([score for _, score in best])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> tuple[int, float]: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[tuple[int, float]]: ...

    def __getitem__(self, place: int | slice) -> tuple[int, float] | Sequence[tuple[int, float]]:
        if isinstance(place, slice):
            return list(zip(self._rows[place].tolist(), self._scores[place].tolist(), strict=True))
        return int(self._rows[place]), float(self._scores[place])


class RecommenderService:
    """A loaded model with its ids and titles.

    Parameters
    ----------
    directory
        A model folder.
    manifest
        Its ``model.json``.
    mapped
        As for ``Recommender``.
    filters
        Number of expressions of which a large catalogue keeps the items that pass (``Choice``).
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any], *, mapped: bool = False, filters: int = 0) -> None:
        self.recommender = Recommender(directory, manifest, mapped=mapped, scanned=True)
        self.items = IdTable(directory / "items.parquet", manifest["items"])
        self.users = IdTable(directory / "users.parquet", manifest["users"])
        self._expressions = Kept(directory, manifest)
        self.fresh: Fresh | None = None
        """Interactions since the model was made."""
        self._counts: NDArray[np.float32] | None = None
        self._filters = filters if self.recommender.scans else 0
        self._choices: dict[str, Choice] = {}

    def for_user(self, user: str, k: int, *, explained: int = 0, where: str | None = None) -> list[dict[str, Any]]:
        """The best items for a user of the training data.

        Parameters
        ----------
        user
            Id of the user.
        k
            Number of items.
        explained
            Number of items of the history that are named for each recommendation: those that added most to its score.
        where
            An expression over attributes that items must match; ``None``: all may be recommended.

        Returns
        -------
        list
            For each item ``id``, ``title`` and ``score``; if ``explained``, ``because``, a list of the same for items
            of the history with what they added, and ``others``, what all other items of the history added.

        Raises
        ------
        UnknownId
            The user is not in the model.
        UsageError
            As ``Recommender.explain`` and ``passing.limited``.
        """
        return list(self.described(self.ranked(user, (), k, self.passing(where)), explained))

    def for_history(
        self, ids: Sequence[str], k: int, *, explained: int = 0, where: str | None = None
    ) -> list[dict[str, Any]]:
        """The best items for a history of item ids, each with value 1; otherwise as ``for_user``."""
        return list(self.described(self.ranked(None, ids, k, self.passing(where)), explained))

    def passing(
        self,
        where: str | None,
        allowed: NDArray[np.bool_] | None = None,
        say: Callable[[str], object] = lambda line: None,
    ) -> NDArray[np.bool_] | None:
        """Mask of the allowed items that match an expression, as ``passing.limited``."""
        return self._expressions.limited(allowed, where, say)

    def choice(self, where: str | None, allowed: NDArray[np.bool_] | None = None) -> Allowed:
        """The same where it will be asked again: an expression alone keeps the items that pass, if there is room."""
        if where is None or allowed is not None or not self._filters:
            return self.passing(where, allowed)
        masks = self._expressions.masks(where)
        if masks is None:
            return self.passing(where)
        choice = self._choices.pop(where, None) or Choice(masks)
        self._choices[where] = choice  # the last one
        if len(self._choices) > self._filters:
            del self._choices[next(iter(self._choices))]
        return choice

    def ranked(
        self,
        user: str | None,
        ids: Sequence[str],
        k: int,
        allowed: Allowed = None,
        *,
        keep_seen: bool = False,
        diversity: float = 0.0,
    ) -> Ranked:
        """The best items among the allowed ones for a user, or if that is ``None`` for a history of item ids.

        Its own items are left out unless ``keep_seen``.

        Raises
        ------
        UnknownId
            The user or an item is not in the model.
        """
        items, values = self.history(user, ids)
        best = self.recommender.recommend(items, values, k, allowed=allowed, keep_seen=keep_seen, diversity=diversity)
        return Ranked(items, values, best)

    def ranked_rows(
        self,
        rows: NDArray[np.int64],
        k: int,
        allowed: Allowed = None,
        *,
        keep_seen: bool = False,
        diversity: float = 0.0,
    ) -> Ranked:
        """The same for a history of rows of items, each of which counts once, with value 1."""
        import numpy as np

        items = np.unique(rows)
        return self.ranked_values(
            items, np.ones(len(items), np.float32), k, allowed, keep_seen=keep_seen, diversity=diversity
        )

    def ranked_values(
        self,
        items: NDArray[np.int64],
        values: NDArray[np.float32],
        k: int,
        allowed: Allowed = None,
        *,
        keep_seen: bool = False,
        diversity: float = 0.0,
    ) -> Ranked:
        """The same for a history of increasing rows of items and their values, shape (n,) each."""
        best = self.recommender.recommend(items, values, k, allowed=allowed, keep_seen=keep_seen, diversity=diversity)
        return Ranked(items, values, best)

    def tried(self, users: int = TRIED) -> tuple[float, float]:
        """Seconds that a list of ten takes, of some users of the model: the median, and the longest."""
        model, times = self.recommender, []
        rows = range(0, model.history.rows, max(1, model.history.rows // users))
        for row in rows[:users]:
            began = time.perf_counter()
            model.recommend(model.history.items(row), model.history.values(row), 10)
            times.append(time.perf_counter() - began)
        return sorted(times)[len(times) // 2], max(times)

    def popular(self, k: int, allowed: Allowed = None, *, diversity: float = 0.0) -> Ranked:
        """The allowed items that most users of the model had, for somebody without a history."""
        import numpy as np

        allowed = allowed.mask() if isinstance(allowed, Choice) else allowed
        best = popularity.most(self.count(), shortlist(k, diversity), allowed)
        chosen = diverse(best, self.recommender.scorer, k, diversity)
        return Ranked(np.zeros(0, np.int64), np.zeros(0, np.float32), chosen)

    def count(self) -> NDArray[np.float32]:
        """How many users had each item, shape (items,): read from the history once."""
        if self._counts is None:
            model = self.recommender
            self._counts = popularity.numbers(model.history, items=len(self.items), shares=model.recent_shares)
        return self._counts

    def has_user(self, user: str) -> bool:
        """True if the model knows a user, or there were interactions since."""
        return self.users.row(user) is not None or (self.fresh is not None and self.fresh.user(user) is not None)

    def found(self, text: str, k: int) -> list[dict[str, Any]]:
        """At most ``k`` items: that whose id a text is, then those whose title contains it, by their numbers of users.

        Letters' case does not count. The scores are the numbers of users.
        """
        counts, matching, row = self.count(), self.items.matching(text), self.items.row(text)
        first = []
        if row is not None:
            first, matching[row] = [(row, float(counts[row]))], False
        return self._described([*first, *popularity.most(counts, k, matching)][:k])

    def history(self, user: str | None, ids: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Items of a user with what came since the model was made, or of a list of ids, and their values.

        Raises
        ------
        UnknownId
            The user or an item is not in the model.
        """
        import numpy as np

        if user is None:
            rows = self.rows(ids)
            return rows, np.ones(len(rows), np.float32)
        row, history, fresh = self.users.row(user), self.recommender.history, self.fresh
        if row is not None:
            had = history.items(row), history.values(row)
            return had if fresh is None else fresh.merged(row, *had)
        row = None if fresh is None else fresh.user(user)
        if row is None or fresh is None:
            raise UnknownId("user", user)
        return fresh.merged(row, np.zeros(0, np.int32), np.zeros(0, np.float32))

    def described(self, ranked: Ranked, explained: int = 0, *, rows: int = EXPLAINED_ROWS) -> Iterator[dict[str, Any]]:
        """Yield the answers one by one, in the form that ``for_user`` returns; raises as ``Recommender.explain``.

        ``rows`` of them are explained at a time.
        """
        import numpy as np

        items, best = ranked.items, ranked.best
        for start in range(0, len(best), rows):
            some = best[start : start + rows]
            answers = self._described(some)
            if explained:
                chosen = np.array([row for row, _ in some], np.int64)
                added = self.recommender.explain(items, ranked.values, chosen)
                for answer, by_item in zip(answers, added, strict=True):
                    most = np.argsort(-by_item, kind="stable")[:explained]
                    answer["because"] = self._described([(int(items[index]), float(by_item[index])) for index in most])
                    answer["others"] = round(float(by_item.sum() - by_item[most].sum()), 6)
                    yield answer
            else:
                yield from answers

    def similar(self, item: str, k: int) -> list[dict[str, Any]]:
        """The ``k`` items nearest to the item with the id ``item``, with cosines as scores.

        Raises
        ------
        UnknownId
            The item is not in the model.
        """
        (row,) = self.rows([item])
        return self._described(self.recommender.similar(int(row), k))

    def like_user(
        self, user: str, k: int, *, threads: int = 1, done: Callable[[int], object] = lambda users: None
    ) -> list[dict[str, Any]]:
        """The ``k`` users most like a user of the training data, with cosines as scores, as ``nearest_users``.

        Raises
        ------
        UnknownId
            The user is not in the model.
        BadInput
            The user has no history.
        """
        row = self.users.row(user)
        if row is None:
            raise UnknownId("user", user)
        nearest = nearest_users(self.recommender, row, k, threads=threads, done=done)
        return [{"id": self.users.id(other), "score": round(score, 6)} for other, score in nearest]

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of item ids, without repetition and increasing.

        Raises
        ------
        UnknownId
            Names the first id that is not in the model.
        """
        import numpy as np

        rows = self.items.rows(ids)
        if (rows < 0).any():
            raise UnknownId("item", ids[int((rows < 0).argmax())])
        return np.unique(rows)

    def _described(self, best: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
        named = self.items.listed([row for row, _ in best])
        return [
            {"id": id_, "title": title, "score": round(score, 6)}
            for (id_, title), (_, score) in zip(named, best, strict=True)
        ]
