"""The exact best items for a vector, from codes in the order of the items' lengths (``stored``).

Positions are read in tiles. The product of a code with the vector is off by at most the vector's length times what is
missing in the code, so it bounds the score from below and above. The k-th largest lower bound is one of the list's last
score; a tile whose longest item cannot reach it ends the scan, and items whose upper bound does not reach it are left
out. The few that remain are scored from their rows. Filters are applied before that, item by item.

Nothing of the catalogue stays in memory, only a tile: the files are in the system's page cache, which processes share
and which it takes back when memory is short.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import NpyReader
from apps.recsys.models.scan.choice import Choice
from apps.recsys.models.scan.rows import Rows
from apps.recsys.models.scan.stored import CODES, ITEMS, LENGTH, MISSING, NUMBERS, SCALE
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FIRST, TILE = 1 << 10, 1 << 12
"""Positions read at first, which as float32 fit into a core's cache, and at a time after that. Twice as many are not
faster (a million items: 2.4 to 2.7 ms with a filter, 0.7 to 0.8 without), and each worker has its own."""
DIRECT = 512
"""Items that are scored from their rows at once where no more may be ranked: it takes as long as a few tiles."""
MOST_CANDIDATES = 1 << 13
"""Candidates from which on they are scored from their rows before the scan goes further."""
CANDIDATE_BYTES = 64
"""Memory of a position of a tile besides its codes, and of a candidate: bounds, and copies of those that are kept."""
ROUNDING = 1e-5
"""Share of the product of two lengths by which a score in float32 may be off, for vectors of up to a thousand."""


def kept_bytes(width: int) -> int:
    """Memory of a scanner of vectors of ``width`` numbers: a tile, and some of it as float32.

    Examples
    --------
    >>> kept_bytes(128) >> 10
    1088
    """
    return TILE * (width + 16) + 4 * FIRST * width


def scanning_bytes(width: int) -> int:
    """Memory of a scan besides: codes of a tile that pass, and candidates.

    Examples
    --------
    >>> scanning_bytes(128) >> 10
    1536
    """
    return TILE * width + CANDIDATE_BYTES * (TILE + MOST_CANDIDATES + TILE)


class Scanner:
    """Finds the best items.

    Parameters
    ----------
    directory
        Folder of the files.
    rows
        The items' vectors.

    Raises
    ------
    BadInput
        The files are damaged.
    """

    def __init__(self, directory: Path, rows: Rows) -> None:
        import numpy as np

        self._rows, (self._count, width) = rows, rows.shape
        self._codes, self._items, self._numbers = (NpyReader(directory / name) for name in (CODES, ITEMS, NUMBERS))
        self._tile = _aligned(TILE * width).reshape(TILE, width)
        self._turned = np.empty((FIRST, width), np.float32)
        self._of_tile = np.empty(TILE, np.int32), np.empty((TILE, 3), np.float32)
        self._starts = [*dict.fromkeys([0, *range(min(FIRST, self._count), self._count, TILE), self._count])]
        firsts = [self._numbers[3 * at + LENGTH : 3 * at + 3][0] for at in self._starts[:-1]]
        self._longest = np.array(firsts, np.float32)
        """Length of the first item of each tile, which is its longest."""
        if not (np.isfinite(self._longest).all() and (np.diff(self._longest) <= 0).all()):
            raise BadInput(f"{directory / NUMBERS}: lengths that are not in order", public="model file corrupt")

    def best(
        self,
        vector: NDArray[np.float32],
        k: int,
        mask: NDArray[np.bool_] | Choice | None = None,
        seen: NDArray[Any] | None = None,
    ) -> list[tuple[int, float]]:
        """The ``k`` best items for a user vector: row and score of each, the best first; of equals the lower row first.

        Parameters
        ----------
        vector
            Shape (factors,).
        k
            Number of items.
        mask
            Items that may be ranked, shape (items,), or a filter that is asked for again; ``None``: all.
        seen
            Rows of items that may not be ranked, increasing, shape (n,).

        Raises
        ------
        BadInput
            The files are damaged.
        """
        import numpy as np

        found = _Candidates(self._rows, vector, k, seen)
        tile, choice = 0, mask if isinstance(mask, Choice) else None
        allowed = None if isinstance(mask, Choice) else mask
        total = None if allowed is None else int(np.count_nonzero(allowed))
        if choice is not None:
            if choice.total is None:
                allowed = choice.mask()
                choice.total = int(np.count_nonzero(allowed))
            total = choice.total
        if total is not None and total <= max(DIRECT, k):
            allowed = choice.mask() if choice is not None and allowed is None else allowed
            assert allowed is not None
            return found.of(np.flatnonzero(allowed))
        if choice is not None:
            for start in range(0, choice.count, FIRST):
                items, numbers, codes = choice.kept(slice(start, min(start + FIRST, choice.count)))
                if found.out_of_reach(numbers[0, LENGTH]):
                    return found.sorted()
                self._score(found, items, numbers, codes)
            tile = choice.tiles
        while tile < len(self._longest) and not found.out_of_reach(self._longest[tile]):
            if choice is not None and allowed is None:
                allowed = choice.mask()
            items, numbers, codes = self._read(tile, allowed)
            if choice is not None and tile == choice.tiles:
                choice.add(items, numbers, codes)
            if len(items):
                self._score(found, items, numbers, codes)
            tile += 1
        return found.sorted()

    def _read(
        self, tile: int, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int8]]:
        """Items of a tile that pass, with their numbers and codes, until the next tile is read."""
        import numpy as np

        start, count = self._starts[tile], self._starts[tile + 1] - self._starts[tile]
        items, numbers, codes = self._of_tile[0][:count], self._of_tile[1][:count], self._tile[:count]
        self._items.fill(items, start)
        if items.min() < 0 or items.max() >= self._count:
            raise BadInput("scan: items out of range", public="model file corrupt")
        passing = None if mask is None else np.flatnonzero(mask.take(items))
        if passing is not None and not len(passing):
            return items[:0], numbers[:0], codes[:0]
        self._codes.fill(codes.reshape(-1), start * codes.shape[1])
        self._numbers.fill(numbers.reshape(-1), 3 * start)
        if passing is not None and len(passing) < count:
            return items[passing], numbers.take(passing, 0), codes.take(passing, 0)
        return items, numbers, codes

    def _score(
        self, found: _Candidates, items: NDArray[np.int32], numbers: NDArray[np.float32], codes: NDArray[np.int8]
    ) -> None:
        """Add items by their codes."""
        import numpy as np

        scores = np.empty(len(codes), np.float32)
        for first in range(0, len(codes), FIRST):
            turned = self._turned[: len(codes) - first]
            np.copyto(turned, codes[first : first + FIRST])
            np.dot(turned, found.vector, out=scores[first : first + FIRST])
        scores *= numbers[:, SCALE]
        found.add(items, scores, numbers[:, MISSING] + np.float32(ROUNDING) * numbers[:, LENGTH])


def _aligned(size: int) -> NDArray[np.int8]:
    """Bytes from a multiple of 64 on: the kernel copies into them in three quarters of the time."""
    import numpy as np

    room = np.empty(size + 64, np.int8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


class _Candidates:
    """Items that may be among the best ``k``, with bounds of their scores; none of the ``seen`` ones."""

    def __init__(self, rows: Rows, vector: NDArray[np.float32], k: int, seen: NDArray[Any] | None) -> None:
        import numpy as np

        self._rows, self.vector, self._k = rows, vector, k
        # An item beyond all is the last, so that each place where one would stand has one.
        self._seen = None if seen is None or not len(seen) else np.append(seen, np.iinfo(np.int32).max)
        self.reach = float(np.linalg.norm(vector)) * (1 + ROUNDING)
        """What an item's length is multiplied by for the largest score that it can have."""
        self.least = -np.inf
        """What a score must reach."""
        self._items, self._lower, self._upper = np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.float32)
        self._most = max(MOST_CANDIDATES, 4 * k)

    def add(self, items: NDArray[np.int32], scores: NDArray[np.float32], missing: NDArray[np.float32]) -> None:
        """Add items, their scores by codes, and how much of their vectors' lengths these may be wrong by, (n,) each."""
        import numpy as np

        slack = missing * np.float32(self.reach)
        upper = scores + slack
        if self.least > -np.inf:
            near = np.flatnonzero(upper >= self.least)
            if not len(near):
                return
            items, scores, slack, upper = items[near], scores[near], slack[near], upper[near]
        if self._seen is not None:
            new = np.flatnonzero(self._unseen(items))
            if len(new) < len(items):
                items, scores, slack, upper = items[new], scores[new], slack[new], upper[new]
        self._items = np.concatenate([self._items, items])
        self._lower = np.concatenate([self._lower, scores - slack])
        self._upper = np.concatenate([self._upper, upper])
        self._bound()
        if len(self._items) > self._most:
            self._settle()

    def out_of_reach(self, length: float) -> bool:
        """True if no item of so long a vector can be among the best."""
        return self.reach * float(length) < self.least

    def _unseen(self, items: NDArray[Any]) -> NDArray[np.bool_]:
        assert self._seen is not None
        unseen: NDArray[np.bool_] = self._seen[self._seen.searchsorted(items)] != items
        return unseen

    def of(self, items: NDArray[np.intp]) -> list[tuple[int, float]]:
        """The best of some items, without bounds."""
        import numpy as np

        if self._seen is not None:
            items = items[self._unseen(items)]
        self._items = items.astype(np.int32)
        self._lower = self._upper = np.zeros(len(items), np.float32)
        return self.sorted()

    def sorted(self) -> list[tuple[int, float]]:
        """The best items by their scores."""
        self._settle()
        return list(zip(self._items.tolist(), self._lower.tolist(), strict=True))

    def _bound(self) -> None:
        """Raise ``least`` to the k-th largest lower bound, and drop what does not reach it."""
        import numpy as np

        count = len(self._items)
        if count < self._k:
            return
        self.least = max(self.least, float(np.partition(self._lower, count - self._k)[count - self._k]))
        self._keep(np.flatnonzero(self._upper >= self.least))

    def _settle(self) -> None:
        """Score all candidates from their rows, and keep the best ``k``."""
        import numpy as np

        exact = np.empty(len(self._items), np.float32)
        for start in range(0, len(exact), DIRECT):
            span = slice(start, start + DIRECT)
            exact[span] = self._rows[self._items[span]] @ self.vector
        self._lower = self._upper = exact
        self._keep(np.lexsort((self._items, -exact))[: self._k])
        if len(self._items) == self._k:
            self.least = max(self.least, float(self._lower[-1]))

    def _keep(self, places: NDArray[np.intp]) -> None:
        self._items, self._lower, self._upper = self._items[places], self._lower[places], self._upper[places]
