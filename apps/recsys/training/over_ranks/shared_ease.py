"""Compute EASE's weights over ranks: each has some of the rows of the matrix of items by items, up to the diagonal.

Rows are dealt out by panels of ``ease.PANEL``, in turn, so that all ranks have as many long ones as short ones. The
matrix is symmetric: what a panel lacks to the right of the diagonal is in the columns of later ones. A rank counts only
the pairs of items in its own rows, so it reads all interactions, and the matrix is nowhere whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apps.recsys.data.csr_store import History
from apps.recsys.evaluation.metrics import Tally
from apps.recsys.models.linear import ease
from apps.recsys.models.linear.log import Log
from apps.recsys.models.top_k import top_k
from apps.recsys.training.fit_ease import EaseTrainer
from apps.recsys.training.fit_linear import METRIC, SAMPLE, Fitted
from apps.recsys.training.over_ranks.shared_linear import starts_again
from common.training.distributed.group import Group

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from apps.recsys.data.splits import HeldOut


class SharedSquare:
    """A symmetric matrix of which each rank has some panels of rows.

    Parameters
    ----------
    size
        Its rows.
    group
        The ranks, which call the same methods in the same order.
    """

    def __init__(self, size: int, group: Group) -> None:
        self.size, self._group = size, group
        own = ease.own_panels(size, group.world.rank, group.world.size)
        self._cells = np.zeros(sum(len(rows) * rows.stop for rows in own), np.float32)
        self.panels: list[tuple[range, NDArray[np.float32]]] = []
        """Rows of this rank's panels, and their numbers up to the last of these rows, in order."""
        self._starts = np.full(size, -1, np.int64)
        at = 0
        for rows in own:
            cells = self._cells[at : at + len(rows) * rows.stop].reshape(len(rows), rows.stop)
            self.panels.append((rows, cells))
            self._starts[rows.start : rows.stop] = at + rows.stop * np.arange(len(rows))
            at += cells.size

    def count(self, items: NDArray[Any]) -> None:
        """Add 1 for each pair of some items, which are increasing, in this rank's rows."""
        mine = items[self._starts[items] >= 0]
        some = max(1, ease.PAIRS // max(1, len(items)))
        for first in range(0, len(mine), some):
            rows = mine[first : first + some]
            # The last row of the panel, up to which its numbers go.
            ends = np.minimum((rows // ease.PANEL + 1) * ease.PANEL, self.size)
            cells = self._starts[rows, None] + items
            self._cells[cells[items < ends[:, None]]] += 1

    def add_to_diagonal(self, number: float) -> None:
        """Add a number to each element of the diagonal."""
        for rows, cells in self.panels:
            diagonal = np.einsum("ii->i", cells[:, rows.start :])
            diagonal += np.float32(number)

    def diagonal(self) -> NDArray[np.float32]:
        """The diagonal, on all ranks."""
        found = np.zeros(self.size, np.float32)
        for rows, cells in self.panels:
            found[rows.start : rows.stop] = np.einsum("ii->i", cells[:, rows.start :])
        return self._added(found)

    def row_panel(self, start: int) -> NDArray[np.float32]:
        """The rows of the panel that begins at ``start``, whole and on all ranks; a new array."""
        span = slice(start, min(start + ease.PANEL, self.size))
        found = np.zeros((span.stop - start, self.size), np.float32)
        for rows, cells in self.panels:
            if rows.start == start:
                found[:, : span.stop] = cells
            elif rows.start > start:
                found[:, rows.start : rows.stop] = cells[:, span].T
        return self._added(found)

    def invert(self, after_panel: Callable[[], None] = lambda: None) -> None:
        """Invert the matrix, which is positive definite, in place, as ``ease.invert`` does."""
        for start in range(0, self.size, ease.PANEL):
            rows = self.row_panel(start)
            span = slice(start, start + len(rows))
            pivot = np.tril(rows[:, span]).astype(np.float64)
            pivot += np.tril(pivot, -1).T
            inverse = np.linalg.inv(pivot).astype(np.float32)
            rows[:, span] = 0
            scaled = inverse @ rows
            for own, cells in self.panels:
                cells -= rows[:, own.start : own.stop].T @ scaled[:, : own.stop]
                if own.start == start:
                    cells[:, :start] = scaled[:, :start]
                    cells[:, start:] = -inverse
                elif own.start > start:
                    cells[:, span] = scaled[:, own.start : own.stop].T
            after_panel()
        self._cells *= -1

    def product(self, histories: list[NDArray[Any]]) -> NDArray[np.float32]:
        """Sum the rows of each history's items, shape (histories, size), on all ranks."""
        had = np.zeros((len(histories), self.size), np.float32)
        for row, items in zip(had, histories, strict=True):
            row[items] = 1
        found = np.zeros_like(had)
        for rows, cells in self.panels:
            found[:, : rows.start] += had[:, rows.start : rows.stop] @ cells[:, : rows.start]
            corner = np.tril(cells[:, rows.start :])
            corner += np.tril(corner, -1).T
            found[:, rows.start : rows.stop] += had[:, : rows.start] @ cells[:, : rows.start].T
            found[:, rows.start : rows.stop] += had[:, rows.start : rows.stop] @ corner
        return self._added(found)

    def _added(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        self._group.added(torch.from_numpy(values))
        return values


class SharedEaseTrainer(EaseTrainer):
    """Trains a ``LinearConfig`` of the form ``ease`` over ranks; the interactions of all are on each one's disk."""

    __slots__ = ()

    def run(self) -> Fitted:
        """Choose the ridge if it is open, and compute the weights; raises ``LostRank`` besides."""
        with starts_again():
            return super().run()

    def _written(self, log: Log, ridge: float) -> NDArray[np.float32]:
        square = self._inverse(log, ridge)
        variances = square.diagonal()
        rows = rows_of_weights(square, variances)
        if self.session.group.leads:
            ease.write(self.config.directory, rows)
        else:
            for _ in rows:
                pass
        return variances

    def _inverse(self, log: Log, ridge: float) -> SharedSquare:
        square = SharedSquare(log.items, self.session.group)
        for block, _ in log.blocks():
            for start, stop in zip(block.indptr[:-1], block.indptr[1:], strict=True):
                square.count(block.indices[start:stop])
        square.add_to_diagonal(ridge)
        with self._bar(log.items, ridge) as after_panel:
            square.invert(after_panel)
        return square

    def _mean(self, ridge: float, hidden: HeldOut) -> float:
        config, ranks, block = self.config, self.session.group, int(self.session.plan["user_block"])
        log, left = Log(config.directory, config.items, SAMPLE), History(config.directory, SAMPLE)
        square, tally = self._inverse(log, ridge), Tally(config.items, (METRIC,))
        variances, popular = square.diagonal(), ease.popular(log.counts())
        for start in range(0, len(hidden), block):
            rows = range(start, min(start + block, len(hidden)))
            histories = [left.items(int(hidden.users[row])) for row in rows]
            scores = square.product(histories)
            if ranks.leads:
                scores /= -variances
                scores += popular
                for line, had in zip(scores, histories, strict=True):
                    line[had] = -np.inf
                tally.add_all([top_k(line, tally.depth) for line in scores], [hidden.items(row) for row in rows])
        left.close()
        mean: float = ranks.of_leader(tally.means()[METRIC] if ranks.leads else 0.0)
        return mean


def rows_of_weights(square: SharedSquare, variances: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield the rows of B in order, on all ranks."""
    for start in range(0, square.size, ease.PANEL):
        panel = square.row_panel(start)
        panel /= -variances
        for place, row in enumerate(panel, start):
            row[place] = 0
            yield row
