"""Scores of all items for histories: the one question that ranking asks of a model of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from apps.recsys.models.embedding.user_encoders import Contributions, FoldIn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Sample = tuple[NDArray[Any], NDArray[np.float32]]
    """Items of a history, shape (n,), and their values."""


class Scorer(Protocol):
    """Scores all items for several histories at a time."""

    items: int
    """Number of items."""

    def workspace(self, users: int) -> Any:
        """Make the arrays that ``scores`` uses for as many users at most. Threads need one each."""
        ...

    def scores(self, histories: Sequence[Sample], workspace: Any) -> NDArray[np.float32]:
        """Score all items for n histories, shape (n, items); valid until the workspace is used again."""
        ...

    def contributions(
        self, items: NDArray[Any], values: NDArray[np.float32], rows: NDArray[Any]
    ) -> NDArray[np.float64] | None:
        """Split the scores of the items ``rows``, shape (m,), by the items of a history, shape (n,).

        Returns
        -------
        NDArray
            Shape (m, n); the sum over a row is the item's score. ``None`` if scores are no such sums.
        """
        ...

    def similarities(self, row: int) -> NDArray[np.float32]:
        """Cosines of one item with all items, shape (items,)."""
        ...

    def closeness(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """The same cosines among the items ``rows``, shape (n,): shape (n, n)."""
        ...


class FactorScorer:
    """Scores by products of item vectors with a user vector.

    Parameters
    ----------
    item_factors
        Item vectors, shape (items, factors).
    fold_in
        From a history to a user vector.
    contributions
        From a history to the contributions of its items to the user vector, if it is their sum.
    prior
        True if the last column is a prior, which is no part of an item's direction.
    """

    def __init__(
        self,
        item_factors: NDArray[np.float32],
        fold_in: FoldIn,
        contributions: Contributions | None = None,
        *,
        prior: bool = False,
    ) -> None:
        self.items = len(item_factors)
        self.item_factors, self.fold_in = item_factors, fold_in
        self._contributions, self._prior = contributions, prior

    def workspace(self, users: int) -> NDArray[np.float32]:
        """Take the scores of as many users."""
        import numpy as np

        return np.empty((users, self.items), np.float32)

    def scores(self, histories: Sequence[Sample], workspace: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score all items; see ``Scorer``."""
        import numpy as np

        vectors = np.stack([self.fold_in(items, values) for items, values in histories])
        scores: NDArray[np.float32] = np.matmul(vectors, self.item_factors.T, out=workspace[: len(histories)])
        return scores

    def contributions(
        self, items: NDArray[Any], values: NDArray[np.float32], rows: NDArray[Any]
    ) -> NDArray[np.float64] | None:
        """Split scores; see ``Scorer``."""
        if self._contributions is None:
            return None
        added: NDArray[np.float64] = self.item_factors[rows] @ self._contributions(items, values).T
        return added

    def similarities(self, row: int) -> NDArray[np.float32]:
        """Cosines of one item with all items; see ``Scorer``."""
        import numpy as np

        vectors = self.item_factors[:, :-1] if self._prior else self.item_factors
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        cosines: NDArray[np.float32] = vectors @ vectors[row]
        cosines /= np.maximum(norms * norms[row], np.float32(1e-12))
        return cosines

    def closeness(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Cosines among some items; see ``Scorer``."""
        import numpy as np

        vectors = self.item_factors[rows, :-1] if self._prior else self.item_factors[rows]
        vectors /= np.maximum(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)), np.float32(1e-6))[:, None]
        cosines: NDArray[np.float32] = vectors @ vectors.T
        return cosines
