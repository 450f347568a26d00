"""Exact top-k for many users without scoring most items.

A score is at most the product of the two vectors' lengths. Items are sorted by length, the longest first, and scored in
tiles. A user is done at the first tile whose longest item cannot reach the user's k-th best score so far. If items
differ much in length, as those of ``ials`` do, this takes a few tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TILE = 4096
"""Items scored at a time. With 64 users the scores are a megabyte, which fits into a core's cache."""
MARGIN = 8
"""Candidates besides the k best that are scored again in float64."""
ROUNDING = 1e-5
"""Relative increase of a score's upper bound, for the rounding of float32."""


class Catalogue:
    """Item vectors and their order by length.

    Parameters
    ----------
    vectors
        Shape (items, factors); not changed.
    allowed
        Mask of the items that may be ranked, shape (items,); ``None``: all.
    """

    def __init__(self, vectors: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> None:
        import numpy as np

        self.vectors = vectors
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        if allowed is not None:
            lengths[~allowed] = -1
        self.rows = np.argsort(-lengths, kind="stable").astype(np.int32)
        """The item at each position of the order."""
        self.positions = np.empty_like(self.rows)
        """The position of each item in the order."""
        self.positions[self.rows] = np.arange(len(lengths), dtype=np.int32)
        self.ranked = len(lengths) if allowed is None else int(allowed.sum())
        """Number of positions that are ranked, the first ones."""
        self.longest = lengths[self.rows[: self.ranked : TILE]]
        """Length of the first item of each tile."""

    def best(
        self, users: NDArray[np.float32], seen: tuple[NDArray[np.int64], NDArray[np.int32]], k: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The ``k`` best items of each user and their scores, the best first; of equal scores the lower row first.

        Parameters
        ----------
        users
            Vectors, shape (users, factors).
        seen
            Pairs of user and item that must not be ranked: two arrays of one length.
        k
            Number of items.

        Returns
        -------
        tuple
            Item rows and scores, shape (users, k); row -1 and score ``-inf`` if fewer items are left.
        """
        import numpy as np

        candidates = _Candidates(len(users), min(k + MARGIN, self.ranked))
        reach = np.linalg.norm(users, axis=1) * np.float32(1 + ROUNDING)
        seen_position = self.positions[seen[1]]
        order = np.argsort(seen_position)
        seen_user, seen_position = seen[0][order], seen_position[order]
        starts = range(0, self.ranked, TILE)
        bounds = np.searchsorted(seen_position, [*starts, self.ranked])
        scores = np.empty((len(users), min(TILE, self.ranked)), np.float32)
        active = np.arange(len(users))
        for number, start in enumerate(starts):
            active = active[reach[active] * self.longest[number] >= candidates.least[active]]
            if not len(active):
                break
            items = self.rows[start : min(start + TILE, self.ranked)]
            tile = np.matmul(users[active], self.vectors[items].T, out=scores[: len(active), : len(items)])
            in_tile = slice(bounds[number], bounds[number + 1])
            row = np.searchsorted(active, seen_user[in_tile])
            masked = (row < len(active)) & (active[np.minimum(row, len(active) - 1)] == seen_user[in_tile])
            tile[row[masked], seen_position[in_tile][masked] - start] = -np.inf
            candidates.add(active, tile, items)
        return self._sorted(users, candidates, k)

    def _sorted(
        self, users: NDArray[np.float32], candidates: _Candidates, k: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The best candidates by their scores in float64."""
        import numpy as np

        rows = np.full((len(users), k), -1, np.int32)
        scores = np.full((len(users), k), -np.inf)
        for user, vector in enumerate(users):
            items = candidates.rows[user][candidates.scores[user] > -np.inf]
            exact = self.vectors[items].astype(np.float64) @ vector.astype(np.float64)
            best = np.lexsort((items, -exact))[:k]
            rows[user, : len(best)], scores[user, : len(best)] = items[best], exact[best]
        return rows, scores


class _Candidates:
    """The ``count`` best items of each user so far."""

    def __init__(self, users: int, count: int) -> None:
        import numpy as np

        self.rows = np.full((users, count), -1, np.int32)
        self.scores = np.full((users, count), -np.inf, np.float32)
        self.least = np.full(users, -np.inf, np.float32)
        """Score of each user's last candidate, which another item must reach."""

    def add(self, users: NDArray[np.int64], scores: NDArray[np.float32], rows: NDArray[np.int32]) -> None:
        """Add a tile: ``users`` of shape (n,), their scores of shape (n, items), and the rows of the items."""
        import numpy as np

        count = self.rows.shape[1]
        least = self.least[users]
        if scores.shape[1] > count:
            # Users without candidates: their bound is the tile's own last candidate.
            empty = np.isneginf(least)
            if empty.any():
                last, copied = scores.shape[1] - count, scores[empty]
                copied.partition(last, axis=1)
                least[empty] = copied[:, last]
                del copied
        user, column = np.nonzero(scores >= least[:, None])
        changed = np.unique(user)
        if not len(changed):
            return
        # Sort old and new candidates of the changed users by user, score and row, and keep the first of each user.
        owner = np.concatenate([np.repeat(changed, count), user])
        items = np.concatenate([self.rows[users[changed]].ravel(), rows[column]])
        values = np.concatenate([self.scores[users[changed]].ravel(), scores[user, column]])
        order = np.lexsort((items, -values, owner))
        firsts = np.searchsorted(owner[order], changed)
        kept = order[firsts[:, None] + np.arange(count)]
        self.rows[users[changed]], self.scores[users[changed]] = items[kept], values[kept]
        self.least[users[changed]] = values[kept[:, -1]]
