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
    """An id that the model does not know."""

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
        """The best items for a known user.

        Parameters
        ----------
        explained
            How many items of the history are named for each, those that added most to its score.

        Raises
        ------
        UnknownId
            No such user.
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
        """The best items for someone who had these items (once each)."""
        import numpy as np

        rows = self.rows(ids)
        return self._best(rows, np.ones(len(rows), np.float32), k, explained, limits)

    def _best(
        self, items: NDArray[Any], values: NDArray[np.float32], k: int, explained: int, limits: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        import numpy as np

        best = self.recommender.recommend(items, values, k, **limits)
        shown = self._shown(best)
        if explained:
            added = self.recommender.explain(items, values, np.array([row for row, _ in best], np.int64))
            for answer, each in zip(shown, added, strict=True):
                most = np.argsort(-each, kind="stable")[:explained]
                answer["because"] = self._shown([(int(items[place]), float(each[place])) for place in most])
                answer["others"] = round(float(each.sum() - each[most].sum()), 6)
        return shown

    def similar(self, item: str, k: int) -> list[dict[str, Any]]:
        """The items nearest to one."""
        (row,) = self.rows([item])
        return self._shown(self.recommender.similar(int(row), k))

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of item ids, each once, in increasing order.

        Raises
        ------
        UnknownId
            Naming the first that is not there.
        """
        import numpy as np

        found = []
        for id_ in ids:
            row = self.items.row(id_)
            if row is None:
                raise UnknownId("item", id_)
            found.append(row)
        return np.unique(np.array(found, np.int64))

    def _shown(self, best: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
        return [
            {"id": self.items.id(row), "title": self.items.title(row), "score": round(score, 6)} for row, score in best
        ]
