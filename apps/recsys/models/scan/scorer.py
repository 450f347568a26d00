"""A scorer whose item vectors are on disk: lists by ``scanner``, all else from the rows that it is asked about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from apps.recsys.models.embedding.user_encoders import Encoder
from apps.recsys.models.scan.choice import Choice
from apps.recsys.models.scan.rows import ItemRows
from apps.recsys.models.scan.scanner import Scanner
from apps.recsys.models.top_k import best_of_blocks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Sample = tuple[NDArray[Any], NDArray[np.float32]]


class ScanScorer:
    """Scores by products of item vectors on disk with a user vector.

    Parameters
    ----------
    rows
        The item vectors.
    encoder
        From a history to a user vector.
    scanner
        Finds the best items.
    """

    def __init__(self, rows: ItemRows, encoder: Encoder, scanner: Scanner) -> None:
        self.items, self._rows, self._encoder, self._scanner = len(rows), rows, encoder, scanner

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

    def workspace(self, users: int) -> NDArray[np.float32]:
        """Take the scores of as many users."""
        import numpy as np

        return np.empty((users, self.items), np.float32)

    def scores(self, histories: Sequence[Sample], workspace: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score all items; see ``Scorer``."""
        import numpy as np

        vectors, scores = np.stack([self._encoder(*history) for history in histories]), workspace[: len(histories)]
        for span, block in self._rows.blocks():
            scores[:, span] = vectors @ block.T
        return scores

    def contributions(
        self, items: NDArray[Any], values: NDArray[np.float32], rows: NDArray[Any]
    ) -> NDArray[np.float64] | None:
        """Split scores; see ``Scorer``."""
        if self._encoder.contributions is None:
            return None
        added: NDArray[np.float64] = self._rows[rows] @ self._encoder.contributions(items, values).T
        return added

    def similarities(self, row: int) -> NDArray[np.float32]:
        """Cosines of one item with all items; see ``Scorer``."""
        import numpy as np

        return np.concatenate([cosines for _, cosines in self._similarities(row)])

    def nearest(self, row: int, k: int) -> list[tuple[int, float]]:
        """The ``k`` items nearest to the item ``row``, without itself: row and cosine of each, the nearest first."""
        import numpy as np

        def others() -> Iterator[tuple[int, NDArray[np.float32]]]:
            for start, cosines in self._similarities(row):
                if start <= row < start + len(cosines):
                    cosines[row - start] = -np.inf
                yield start, cosines

        return best_of_blocks(others(), k)

    def _similarities(self, row: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Blocks of the cosines, and their first items."""
        import numpy as np

        (own,) = self._rows[np.array([row])]
        size = np.linalg.norm(own)
        for span, block in self._rows.blocks():
            lengths = np.sqrt(np.einsum("ij,ij->i", block, block)) * size
            yield span.start, (block @ own) / np.maximum(lengths, np.float32(1e-12))

    def closeness(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Cosines among some items; see ``Scorer``."""
        import numpy as np

        vectors = self._rows[rows]
        vectors /= np.maximum(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)), np.float32(1e-6))[:, None]
        cosines: NDArray[np.float32] = vectors @ vectors.T
        return cosines
