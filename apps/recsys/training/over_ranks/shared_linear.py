"""Compute the spectrum of a linear model over ranks: each multiplies by a range of users, and has a range of the rows.

A rank reads its own users' interactions, and keeps the rows of the vectors that belong to its own items. P is applied
to ``COLUMNS`` vectors at a time: their rows are gathered from all ranks, and the products of all users added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apps.recsys.data.csr_store import History
from apps.recsys.evaluation.metrics import Tally
from apps.recsys.models import weights
from apps.recsys.models.linear.log import Log
from apps.recsys.models.linear.spectral import response
from apps.recsys.models.linear.spectrum import VectorRows
from apps.recsys.planning.linear.over_ranks import COLUMNS, DRAWN
from apps.recsys.training.fit_linear import DEPTH, METRIC, SAMPLE, Fitted, LinearTrainer
from apps.recsys.training.over_ranks.shared_tables import streamed_rows
from apps.recsys.training.over_ranks.shared_validation import joined
from common.training.distributed.group import Group, LostRank
from common.training.distributed.row_files import SharedRows

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from numpy.typing import NDArray

    from apps.recsys.data.splits import HeldOut
    from apps.recsys.training.compare_linear import Comparison
    from apps.recsys.training.linear_candidates import Candidate

AGAIN = "the same command starts again: the computation is in one piece, and has no checkpoints"
"""End of the message that a rank is lost."""


class SharedLog(Log):
    """Interactions of which this rank reads those of a range of users, with as many of them as any other's.

    Parameters
    ----------
    group
        The ranks, which call the same methods in the same order.
    """

    def __init__(self, directory: Path, items: int, name: str | None, group: Group) -> None:
        super().__init__(directory, items, name)
        self._group = group
        indptr, (rank, size) = self.history.indptr, (group.world.rank, group.world.size)
        ends = [rank * self.history.size // size, (rank + 1) * self.history.size // size]
        start, stop = (int(place) for place in np.searchsorted(indptr[:-1], ends))
        self.part = range(start, self.users if rank == size - 1 else stop)

    def counts(self) -> NDArray[np.int32]:
        """Count the users of each item, of all ranks."""
        counts = super().counts()
        self._group.added(torch.from_numpy(counts))
        return counts

    def gram(self, vectors: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute ``R' Du^-u R y`` with the users of all ranks; the vectors are the same on all."""
        super().gram(vectors, out)
        self._group.added(torch.from_numpy(out))
        return out


class SharedVectorRows(VectorRows):
    """The rows of vectors that belong to this rank's items.

    Parameters
    ----------
    items
        Number of items.
    group
        The ranks.
    """

    def __init__(self, pool: ThreadPoolExecutor, threads: int, *, items: int, group: Group) -> None:
        super().__init__(pool, threads)
        self._items, self._group = items, group
        share = group.share(items)
        self._own = slice(share.start, share.stop)

    def own(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values of this rank's items."""
        return values[self._own]

    def first(self, random: np.random.Generator, items: int, width: int) -> NDArray[np.float32]:
        """This rank's rows of the first vectors: all are drawn, some at a time."""
        own = self._own
        drawn = np.empty((own.stop - own.start, width), np.float32)
        for first in range(0, items, DRAWN):
            block = random.standard_normal((min(DRAWN, items - first), width), np.float32)
            start, stop = max(first, own.start), min(first + len(block), own.stop)
            if start < stop:
                drawn[start - own.start : stop - own.start] = block[start - first : stop - first]
        return drawn

    def gram(self, log: Log, vectors: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Apply the log to vectors, some at a time."""
        width = vectors.shape[1]
        room, product = (np.empty(self._items * min(COLUMNS, width), np.float32) for _ in range(2))
        for start in range(0, width, COLUMNS):
            span = slice(start, min(start + COLUMNS, width))
            shape = self._items, span.stop - start
            whole, applied = (array[: shape[0] * shape[1]].reshape(shape) for array in (room, product))
            whole[:] = 0
            whole[self._own] = vectors[:, span]
            self._group.added(torch.from_numpy(whole))
            log.gram(whole, applied)
            out[:, span] = applied[self._own]

    def added(self, total: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add up over the ranks."""
        self._group.added(torch.from_numpy(total))
        return total

    def eigen(self, square: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Those that the first rank finds: another machine may find the same vectors with other signs."""
        found = {"": torch.empty(0)}
        if self._group.leads:
            found = {name: torch.from_numpy(part) for name, part in zip("lv", super().eigen(square), strict=True)}
        values, vectors = self._group.tensors_of_leader(found).values()
        return values.numpy(), vectors.numpy()


class SharedLinearTrainer(LinearTrainer):
    """Trains a ``LinearConfig`` of the form ``spectral`` over ranks; the interactions of all are on each one's disk."""

    __slots__ = ()

    def run(self) -> Fitted:
        """Choose what is open and compute the spectrum; raises ``LostRank`` besides."""
        with starts_again():
            return super().run()

    def _log(self, name: str | None = None) -> Log:
        return SharedLog(self.config.directory, self.config.items, name, self.session.group)

    def _kept(self) -> Callable[[ThreadPoolExecutor, int], VectorRows]:
        return partial(SharedVectorRows, items=self.config.items, group=self.session.group)

    def _stored(
        self, vectors: NDArray[np.float32], eigenvalues: NDArray[np.float32], chosen: Candidate
    ) -> dict[str, Any]:
        shared = SharedRows.of(torch.from_numpy(vectors), self.config.items, self.session.group)
        return {weights.SPECTRUM: streamed_rows(shared)}

    def _ranked(self, comparison: Comparison, group: list[Candidate], hidden: HeldOut) -> dict[Candidate, float]:
        config, session, ranks = self.config, self.session, self.session.group
        left, own, block = History(config.directory, SAMPLE), ranks.share(config.items), int(session.plan["user_block"])
        tallies = {candidate: Tally(config.items, (METRIC,)) for candidate in group}
        powers = sorted({candidate.degree_power for candidate in group})
        with session.progress(total=len(powers) * len(hidden), unit="user", label="choose") as bar:
            for power in powers:
                some = [candidate for candidate in group if candidate.degree_power == power]
                for start in range(0, len(hidden), block):
                    rows = range(start, min(start + block, len(hidden)))
                    histories = [left.items(int(hidden.users[row])) for row in rows]
                    for candidate, scores in _scores(comparison, some, histories, own, ranks):
                        rankings = joined(scores, histories, own, DEPTH, ranks)
                        if ranks.leads:
                            tallies[candidate].add_all(rankings, [hidden.items(row) for row in rows])
                    bar.update(len(rows))
                    if ranks.sums([float(session.stopping)])[0]:
                        raise KeyboardInterrupt
        left.close()
        means = [tally.means()[METRIC] for tally in tallies.values()] if ranks.leads else []
        return dict(zip(group, ranks.of_leader(means), strict=True))


def _scores(
    comparison: Comparison, candidates: list[Candidate], histories: list[NDArray[Any]], own: range, group: Group
) -> Iterator[tuple[Candidate, NDArray[np.float32]]]:
    """Yield the scores of this rank's items, shape (histories, own items), by candidates of one degree power."""
    assert comparison.spectrum is not None
    (vectors, eigenvalues), counts = comparison.spectrum, comparison.degrees[own.start : own.stop, 0]
    power = np.float32(candidates[0].degree_power)
    coefficients = np.empty((len(histories), len(eigenvalues)), np.float32)
    for row, items in zip(coefficients, histories, strict=True):
        places = items[(items >= own.start) & (items < own.stop)] - own.start
        row[:] = counts[places] ** -power @ vectors[places]
    group.added(torch.from_numpy(coefficients))
    for candidate in candidates:
        passed = response(eigenvalues, candidate.saturation)
        scores: NDArray[np.float32] = np.matmul(coefficients * passed, vectors.T)
        scores *= counts**power
        yield candidate, scores


@contextmanager
def starts_again() -> Iterator[None]:
    """A block whose message on a lost rank says what to do."""
    try:
        yield
    except LostRank as error:
        raise LostRank(f"{error}: {AGAIN}") from None
