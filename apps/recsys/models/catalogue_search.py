"""The best items for many users at once, exactly, without looking at most items.

A score is at most the product of the two vectors' lengths. Items are taken in the order of their lengths, the longest
first, and scored a tile at a time; a user is done at the first tile whose longest item could no longer reach its k-th
best score so far. Where items are of very different lengths, as those of ``ials`` are, that is after a few tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TILE = 4096
"""Items scored at a time: with 64 users a megabyte, which stays in a core's cache."""
MARGIN = 8
"""Candidates beyond k that are scored again in float64."""
ROUNDING = 1e-5
"""A bound on a score in float32 is raised by this share of the vectors' lengths."""


class Catalogue:
    """Items' vectors, and their order by length.

    Parameters
    ----------
    vectors
        Shape (items, factors); not changed.
    allowed
        Which items may be ranked at all; ``None``: every one.
    """

    def __init__(self, vectors: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> None:
        import numpy as np

        self.vectors = vectors
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        if allowed is not None:
            lengths[~allowed] = -1
        self.rows = np.argsort(-lengths, kind="stable").astype(np.int32)
        """The item at each place."""
        self.places = np.empty_like(self.rows)
        """The place of each item."""
        self.places[self.rows] = np.arange(len(lengths), dtype=np.int32)
        self.ranked = len(lengths) if allowed is None else int(allowed.sum())
        """Places that are ranked, the first ones."""
        self.longest = lengths[self.rows[: self.ranked : TILE]]
        """The length of the first item of each tile."""

    def best(
        self, users: NDArray[np.float32], seen: tuple[NDArray[np.int64], NDArray[np.int32]], k: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The ``k`` best items of each user and their scores, the best first; of equal scores the lower row first.

        Parameters
        ----------
        users
            Vectors, shape (users, factors).
        seen
            Pairs never to rank: (user, item), arrays of one length.

        Returns
        -------
        tuple
            Item rows and scores, shape (users, k); where fewer are left, row -1 and score ``-inf``.
        """
        import numpy as np

        wanted = min(k + MARGIN, self.ranked)
        found = _Found(len(users), wanted)
        reach = np.linalg.norm(users, axis=1) * np.float32(1 + ROUNDING)
        seen_place = self.places[seen[1]]
        order = np.argsort(seen_place)
        seen_user, seen_place = seen[0][order], seen_place[order]
        starts = range(0, self.ranked, TILE)
        bounds = np.searchsorted(seen_place, [*starts, self.ranked])
        scores = np.empty((len(users), min(TILE, self.ranked)), np.float32)
        active = np.arange(len(users))
        for number, start in enumerate(starts):
            active = active[reach[active] * self.longest[number] >= found.least[active]]
            if not len(active):
                break
            items = self.rows[start : min(start + TILE, self.ranked)]
            here = np.matmul(users[active], self.vectors[items].T, out=scores[: len(active), : len(items)])
            part = slice(bounds[number], bounds[number + 1])
            row = np.searchsorted(active, seen_user[part])
            known = (row < len(active)) & (active[np.minimum(row, len(active) - 1)] == seen_user[part])
            here[row[known], seen_place[part][known] - start] = -np.inf
            found.add(active, here, items)
        return self._exactly(users, found, k)

    def _exactly(
        self, users: NDArray[np.float32], found: _Found, k: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The candidates in the order of their scores in float64."""
        import numpy as np

        rows = np.full((len(users), k), -1, np.int32)
        scores = np.full((len(users), k), -np.inf)
        for user, vector in enumerate(users):
            items = found.rows[user][found.scores[user] > -np.inf]
            exact = self.vectors[items].astype(np.float64) @ vector.astype(np.float64)
            best = np.lexsort((items, -exact))[:k]
            rows[user, : len(best)], scores[user, : len(best)] = items[best], exact[best]
        return rows, scores


class _Found:
    """The best candidates of each user so far."""

    def __init__(self, users: int, wanted: int) -> None:
        import numpy as np

        self.rows = np.full((users, wanted), -1, np.int32)
        self.scores = np.full((users, wanted), -np.inf, np.float32)
        self.least = np.full(users, -np.inf, np.float32)
        """The last one's score: what another must reach."""

    def add(self, users: NDArray[np.int64], scores: NDArray[np.float32], rows: NDArray[np.int32]) -> None:
        """Take up a tile: scores of shape (users, items), and the rows of its items."""
        import numpy as np

        wanted = self.rows.shape[1]
        least = self.least[users]
        if scores.shape[1] > wanted:
            # Before the first tile nothing is known; later this is never below what is known.
            empty = np.isneginf(least)
            if empty.any():
                place, copied = scores.shape[1] - wanted, scores[empty]
                copied.partition(place, axis=1)
                least[empty] = copied[:, place]
                del copied
        user, column = np.nonzero(scores >= least[:, None])
        changed = np.unique(user)
        if not len(changed):
            return
        # Old and new candidates of the users that have any, by user, score and row; the first of each user stay.
        who = np.concatenate([np.repeat(changed, wanted), user])
        items = np.concatenate([self.rows[users[changed]].ravel(), rows[column]])
        values = np.concatenate([self.scores[users[changed]].ravel(), scores[user, column]])
        order = np.lexsort((items, -values, who))
        firsts = np.searchsorted(who[order], changed)
        kept = order[firsts[:, None] + np.arange(wanted)]
        self.rows[users[changed]], self.scores[users[changed]] = items[kept], values[kept]
        self.least[users[changed]] = values[kept[:, -1]]
