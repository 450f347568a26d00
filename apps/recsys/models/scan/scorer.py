"""Scorers whose item vectors are not in memory as float32: they are on disk, or codes that are decoded by blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from apps.recsys.models.embedding.user_encoders import Encoder
from apps.recsys.models.scan.choice import Choice
from apps.recsys.models.scan.rows import Rows
from apps.recsys.models.scan.scanner import Scanner
from apps.recsys.models.top_k import top_k

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Sample = tuple[NDArray[Any], NDArray[np.float32]]


class RowScorer:
    """Scores by products of item vectors, read some rows at a time, with a user vector.

    Parameters
    ----------
    rows
        The item vectors.
    encoder
        From a history to a user vector.
    prior
        Added to each item's score, shape (items,); users' vectors then have one more number.
    """

    def __init__(self, rows: Rows, encoder: Encoder, prior: NDArray[np.float32] | None = None) -> None:
        self.items, self.rows, self._encoder, self._prior = len(rows), rows, encoder, prior

    def workspace(self, users: int) -> NDArray[np.float32]:
        """Take the scores of as many users."""
        import numpy as np

        return np.empty((users, self.items), np.float32)

    def scores(self, histories: Sequence[Sample], workspace: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score all items; see ``Scorer``."""
        import numpy as np

        vectors, scores = np.stack([self._encoder(*history) for history in histories]), workspace[: len(histories)]
        vectors = vectors[:, : self.rows.shape[1]]
        for some, block in self.rows.blocks():
            if isinstance(some, slice):
                np.matmul(vectors, block.T, out=scores[:, some])
            else:
                scores[:, some] = vectors @ block.T
        if self._prior is not None:
            scores += self._prior
        return scores

    def matrix(self) -> NDArray[np.float32]:
        """All item vectors, with the prior as the last column if there is one."""
        import numpy as np

        items, factors = self.rows.shape
        whole = np.empty((items, factors + (self._prior is not None)), np.float32)
        for some, block in self.rows.blocks():
            whole[some, :factors] = block
        if self._prior is not None:
            whole[:, -1] = self._prior
        return whole

    def contributions(
        self, items: NDArray[Any], values: NDArray[np.float32], rows: NDArray[Any]
    ) -> NDArray[np.float64] | None:
        """Split scores; see ``Scorer``."""
        if self._encoder.contributions is None:
            return None
        added: NDArray[np.float64] = self.rows[rows] @ self._encoder.contributions(items, values).T
        return added

    def similarities(self, row: int) -> NDArray[np.float32]:
        """Cosines of one item with all items; see ``Scorer``."""
        import numpy as np

        found = np.empty(len(self.rows), np.float32)
        for some, cosines in self._similarities(row):
            found[some] = cosines
        return found

    def _similarities(self, row: int) -> Iterator[tuple[slice | NDArray[np.intp], NDArray[np.float32]]]:
        """Blocks of the cosines, and their items."""
        import numpy as np

        (own,) = self.rows[np.array([row])]
        size = np.linalg.norm(own)
        for some, block in self.rows.blocks():
            lengths = np.sqrt(np.einsum("ij,ij->i", block, block)) * size
            yield some, (block @ own) / np.maximum(lengths, np.float32(1e-12))

    def closeness(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Cosines among some items; see ``Scorer``."""
        import numpy as np

        vectors = self.rows[rows]
        vectors /= np.maximum(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)), np.float32(1e-6))[:, None]
        cosines: NDArray[np.float32] = vectors @ vectors.T
        return cosines


class ScanScorer(RowScorer):
    """Scores by item vectors that are on disk or codes; lists by ``scanner``, all else by rows.

    Parameters
    ----------
    rows
        The item vectors.
    encoder
        From a history to a user vector.
    scanner
        Finds the best items.
    """

    def __init__(self, rows: Rows, encoder: Encoder, scanner: Scanner) -> None:
        super().__init__(rows, encoder)
        self._scanner = scanner

    def best(
        self,
        items: NDArray[Any],
        values: NDArray[np.float32],
        k: int,
        mask: NDArray[np.bool_] | Choice | None,
        *,
        keep_seen: bool,
    ) -> list[tuple[int, float]]:
        """The best items for a history, without its own unless ``keep_seen``; see ``Scanner.best``."""
        return self._scanner.best(self._encoder(items, values), k, mask, None if keep_seen else items)

    def nearest(self, row: int, k: int) -> list[tuple[int, float]]:
        """The ``k`` items nearest to the item ``row``, without itself: row and cosine of each, the nearest first."""
        import numpy as np

        rows, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
        for some, cosines in self._similarities(row):
            items = np.arange(some.start, some.stop) if isinstance(some, slice) else some
            cosines[items == row] = -np.inf
            first = top_k(cosines, k)
            rows, scores = np.concatenate([rows, items[first]]), np.concatenate([scores, cosines[first]])
            best = np.lexsort((rows, -scores))[:k]
            rows, scores = rows[best], scores[best]
        return list(zip(rows.tolist(), scores.tolist(), strict=True))
