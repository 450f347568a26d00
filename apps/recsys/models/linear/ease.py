"""EASE: the closed-form item-to-item weights of Steck, "Embarrassingly shallow autoencoders for sparse data" (2019).

With X the binary matrix of users and items, ``C = (X'X + ridge I)^-1``, ``B_ij = -C_ij / C_jj`` and a diagonal of 0,
the scores of a history are the sum of its items' rows of B. B has items squared numbers. They are made in one array,
written row by row, and read again by rows: scoring holds one row at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from apps.recsys.data.csr_store import NpyReader, NpyWriter
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.models.linear.log import Log

    Sample = tuple[NDArray[Any], NDArray[np.float32]]

FILE = "ease.npy"
"""B in the model folder, row after row."""
PANEL = 256
"""Rows that are eliminated at a time: 3 arrays of them. 128 to 512 were equally fast."""
PAIRS = 1 << 18
"""Pairs of a user's items that are counted at a time."""
POPULAR = 1e-15
"""As ``filter.POPULAR``: orders items that no item of the history says anything about."""


class Rows(Protocol):
    """Rows of B, in memory or on disk."""

    def __getitem__(self, row: int, /) -> NDArray[np.float32]: ...


def steps(items: int) -> int:
    """Times that ``item_weights`` calls ``after_panel``."""
    return -(-items // PANEL)


def own_panels(items: int, rank: int, ranks: int) -> list[range]:
    """Return the rows of B that one of several ranks makes: panels in turn.

    Examples
    --------
    >>> own_panels(600, 0, 2), own_panels(600, 1, 2)
    ([range(0, 256), range(512, 600)], [range(256, 512)])
    """
    starts = range(rank * PANEL, items, ranks * PANEL)
    return [range(start, min(start + PANEL, items)) for start in starts]


def most_cells(items: int, ranks: int) -> int:
    """Most numbers that one of several ranks holds of a symmetric matrix: its rows up to the end of their panel.

    Examples
    --------
    >>> most_cells(600, 2), most_cells(600, 3), 600**2
    (131072, 131072, 360000)
    """
    return max(sum(len(rows) * rows.stop for rows in own_panels(items, rank, ranks)) for rank in range(ranks))


def item_weights(
    log: Log, ridge: float, after_panel: Callable[[], None] = lambda: None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute B in one array of items squared numbers.

    Parameters
    ----------
    log
        The interactions.
    ridge
        What is added to the diagonal, above 0.
    after_panel
        Called ``steps`` times; an exception that it raises ends the computation.

    Returns
    -------
    tuple
        B, shape (items, items), and the diagonal of C, shape (items,).
    """
    import numpy as np

    matrix = np.zeros((log.items, log.items), np.float32)
    for block, _ in log.blocks():
        for start, stop in zip(block.indptr[:-1], block.indptr[1:], strict=True):
            items = block.indices[start:stop]
            some = max(1, PAIRS // max(1, len(items)))
            for first in range(0, len(items), some):
                matrix[items[first : first + some, None], items] += 1
    diagonal = np.einsum("ii->i", matrix)
    diagonal += np.float32(ridge)
    invert(matrix, after_panel)
    variances = diagonal.copy()
    matrix /= -variances
    diagonal[:] = 0
    return matrix, variances


def invert(matrix: NDArray[np.float32], after_panel: Callable[[], None] = lambda: None) -> None:
    """Invert a symmetric positive definite matrix in place: the sweep operator, by panels of rows.

    Parameters
    ----------
    matrix
        Shape (n, n); only its lower triangle is read.
    after_panel
        Called after each panel.
    """
    import numpy as np

    size = len(matrix)
    for start in range(0, size, PANEL):
        stop = min(start + PANEL, size)
        rows = np.empty((stop - start, size), np.float32)
        rows[:, :start] = matrix[start:stop, :start]
        rows[:, stop:] = matrix[stop:, start:stop].T
        pivot = np.tril(matrix[start:stop, start:stop]).astype(np.float64)
        pivot += np.tril(pivot, -1).T
        inverse = np.linalg.inv(pivot).astype(np.float32)
        rows[:, start:stop] = 0
        scaled = inverse @ rows
        for top in range(0, size, PANEL):
            bottom = min(top + PANEL, size)
            matrix[top:bottom, :bottom] -= rows[:, top:bottom].T @ scaled[:, :bottom]
        matrix[start:stop, :start] = scaled[:, :start]
        matrix[stop:, start:stop] = scaled[:, stop:].T
        matrix[start:stop, start:stop] = -inverse
        after_panel()
    for top in range(0, size, PANEL):
        bottom = min(top + PANEL, size)
        matrix[top:bottom, :bottom] *= -1
        corner = np.tril(matrix[top:bottom, top:bottom])
        matrix[top:bottom, top:bottom] = corner + np.tril(corner, -1).T
        matrix[:top, top:bottom] = matrix[top:bottom, :top].T


def write(directory: Path, weights: Iterable[NDArray[np.float32]]) -> None:
    """Write the rows of B as ``RowsOnDisk`` reads them."""
    with NpyWriter(directory / FILE, "<f4") as writer:
        for row in weights:
            writer.append(row)


def popular(counts: NDArray[np.int32]) -> NDArray[np.float32]:
    """Scores of a history that says nothing of any item, by the items' numbers of users."""
    import numpy as np

    scores: NDArray[np.float32] = np.maximum(counts, 1).astype(np.float32) * np.float32(POPULAR)
    return scores


class RowsOnDisk:
    """Rows of B, each read when it is asked for.

    Parameters
    ----------
    directory
        The model folder.
    items
        Number of items.
    """

    def __init__(self, directory: Path, items: int) -> None:
        self._path, self._items, self._reader = directory / FILE, items, NpyReader(directory / FILE)

    def __getitem__(self, row: int, /) -> NDArray[np.float32]:
        import numpy as np

        start = int(row) * self._items
        values: NDArray[np.float32] = self._reader[start : start + self._items]
        if not np.isfinite(values).all():
            raise BadInput(f"{self._path}: row {row} is damaged", public="model file corrupt")
        return values


class EaseScorer:
    """Scores all items by the sum of the history's rows of B.

    Parameters
    ----------
    rows
        B.
    counts
        Users of each item, shape (items,).
    variances
        Diagonal of C, shape (items,).
    """

    def __init__(self, rows: Rows, counts: NDArray[np.int32], variances: NDArray[np.float32]) -> None:
        self.items = len(counts)
        self._rows, self._variances, self._popular = rows, variances, popular(counts)

    def workspace(self, users: int) -> NDArray[np.float32]:
        """Take the scores of as many users."""
        import numpy as np

        return np.empty((users, self.items), np.float32)

    def scores(self, histories: Sequence[Sample], workspace: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score all items; see ``Scorer``."""
        scores = workspace[: len(histories)]
        for row, (items, _) in zip(scores, histories, strict=True):
            row[:] = self._popular
            for item in items:
                row += self._rows[item]
        return scores

    def contributions(
        self, items: NDArray[Any], values: NDArray[np.float32], rows: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Split scores; see ``Scorer``."""
        import numpy as np

        parts = np.empty((len(rows), len(items)))
        for place, item in enumerate(items):
            parts[:, place] = self._rows[item][rows]
        return parts

    def similarities(self, row: int) -> NDArray[np.float32]:
        """Partial correlations of one item with all: how far two go together where all others are equal, -1 to 1."""
        import numpy as np

        correlations: NDArray[np.float32] = self._rows[row] * np.sqrt(self._variances / self._variances[row])
        correlations[row] = 1
        return correlations

    def closeness(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Partial correlations of some items with each other; see ``Scorer``."""
        import numpy as np

        own = self._variances[rows]
        correlations = np.empty((len(rows), len(rows)), np.float32)
        for place, row in enumerate(rows):
            correlations[place] = self._rows[row][rows] * np.sqrt(own / own[place])
            correlations[place, place] = 1
        return correlations
