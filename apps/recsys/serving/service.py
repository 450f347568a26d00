"""A model with its ids and titles, which answers by ids: what the command line and the server share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.id_table import IdTable
from apps.recsys.models.recommender import Recommender
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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


class RecommenderService:
    """A loaded model with its ids and titles.

    Parameters
    ----------
    directory
        A model folder.
    manifest
        Its ``model.json``.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self.recommender = Recommender(directory, manifest)
        self.items = IdTable(directory / "items.parquet")
        self.users = IdTable(directory / "users.parquet")

    def for_user(self, user: str, k: int, *, explained: int = 0, **limits: NDArray[Any] | None) -> list[dict[str, Any]]:
        """The best items for a user of the training data.

        Parameters
        ----------
        user
            Id of the user.
        k
            Number of items.
        explained
            Number of items of the history that are named for each recommendation: those that added most to its score.
        limits
            ``exclude`` and ``only`` of ``Recommender.recommend``.

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
            As ``Recommender.explain``.
        """
        row = self.users.row(user)
        if row is None:
            raise UnknownId("user", user)
        history = self.recommender.history
        return self._best(history.items(row), history.values(row), k, explained, limits)

    def for_history(
        self, ids: Sequence[str], k: int, *, explained: int = 0, **limits: NDArray[Any] | None
    ) -> list[dict[str, Any]]:
        """The best items for a history of item ids, each with value 1; otherwise as ``for_user``."""
        import numpy as np

        rows = self.rows(ids)
        return self._best(rows, np.ones(len(rows), np.float32), k, explained, limits)

    def _best(
        self, items: NDArray[Any], values: NDArray[np.float32], k: int, explained: int, limits: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        import numpy as np

        best = self.recommender.recommend(items, values, k, **limits)
        answers = self._described(best)
        if explained:
            added = self.recommender.explain(items, values, np.array([row for row, _ in best], np.int64))
            for answer, by_item in zip(answers, added, strict=True):
                most = np.argsort(-by_item, kind="stable")[:explained]
                answer["because"] = self._described([(int(items[index]), float(by_item[index])) for index in most])
                answer["others"] = round(float(by_item.sum() - by_item[most].sum()), 6)
        return answers

    def similar(self, item: str, k: int) -> list[dict[str, Any]]:
        """The ``k`` items nearest to the item with the id ``item``, with cosines as scores.

        Raises
        ------
        UnknownId
            The item is not in the model.
        """
        (row,) = self.rows([item])
        return self._described(self.recommender.similar(int(row), k))

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of item ids, without repetition and increasing.

        Raises
        ------
        UnknownId
            Names the first id that is not in the model.
        """
        import numpy as np

        rows = []
        for id_ in ids:
            row = self.items.row(id_)
            if row is None:
                raise UnknownId("item", id_)
            rows.append(row)
        return np.unique(np.array(rows, np.int64))

    def _described(self, best: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
        return [
            {"id": self.items.id(row), "title": self.items.title(row), "score": round(score, 6)} for row, score in best
        ]
