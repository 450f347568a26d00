"""Batches of the ``embedding`` model, streamed from the history on disk.

Blocks of users are read in random order into a pool, whose pairs are shuffled. An epoch is one pass over the files, and
memory does not grow with them. Every batch has its own random generator, so a training continues after any batch
exactly as if it had not been interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import Kept
from apps.recsys.models.embedding.embedding_config import ABSENT, POOL, EmbeddingConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.models.embedding.model import EmbeddingBatch


_Block = tuple["NDArray[np.int32]", "NDArray[np.int64]", "NDArray[np.int64]"]
"""Items of a range of users, number of items of each user, rows of the users."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """Items of some users in memory, and the windows to train on."""

    items: NDArray[np.int32]
    """Items of all users, one user after the other, each user's in random order."""
    users: NDArray[np.int64]
    """Rows of the users."""
    starts: NDArray[np.int64]
    """Offsets of the users' items, shape (users + 1,)."""
    owner: NDArray[np.int32]
    """User of each window, an index into ``users``, in the order of training."""
    first: NDArray[np.int32]
    """Index of each window's first item among the user's items; its targets are the first items."""


class Batches:
    """Makes the batches of a training.

    Parameters
    ----------
    history
        All interactions.
    kept
        The interactions that are trained on.
    config
        The network.
    seed
        Seed of the random numbers.
    """

    def __init__(self, history: History, kept: Kept, config: EmbeddingConfig, *, seed: int) -> None:
        import numpy as np

        self._history, self._kept, self._config, self._seed = history, kept, config, seed
        self.windows = 0
        """Number of windows in an epoch."""
        # Arrays of the catalogue's length are there only where items are drawn or scored by their counts.
        counts = np.zeros(config.items if config.counts_items else 0, np.int64)
        for start, stop in history.blocks():
            items, lengths, _ = self._read(start, stop)
            if len(counts):
                counts += np.bincount(items, minlength=config.items)
            self.windows += int((-(-lengths[lengths > 1] // config.targets)).sum())
        if config.popularity:
            share = np.maximum(counts, 1) ** config.popularity  # every item may be drawn, even without interactions
            self._cumulative = np.cumsum(share / share.sum())
            self._correction = np.log(share / share.sum() * config.negatives).astype(np.float32)
        self._uniform = np.float32(np.log(1 / config.items * config.negatives))
        """Correction of each item, where all are drawn alike."""
        self.prior = (config.prior * np.log(counts + 1)).astype(np.float32) if config.prior else None
        """Prior of each item's score, shape (items,); ``None``: there is none."""

    def epoch(self, number: int, *, after: int = 0) -> Iterator[EmbeddingBatch]:
        """Yield the batches of an epoch, without the first ``after``."""
        import numpy as np

        size, done = self._config.batch, 0
        for pool in self._pools(np.random.default_rng([self._seed, number])):
            for start in range(0, len(pool.owner), size):
                done += 1
                if done > after:
                    random = np.random.default_rng([self._seed, number, done])
                    yield self._batch(pool, slice(start, start + size), random)

    def _read(self, start: int, stop: int) -> _Block:
        """The trained items of the users ``start`` to ``stop``."""
        import numpy as np

        keep = self._kept.mask(start, stop)
        ends = self._history.indptr[start : stop + 1] - self._history.indptr[start]
        before = np.concatenate([[0], np.cumsum(keep)])[ends]
        return self._history.items(start, stop)[keep], np.diff(before), np.arange(start, stop)

    def _pools(self, random: np.random.Generator) -> Iterator[_Pool]:

        blocks = list(self._history.blocks())
        waiting: list[_Block] = []
        size = 0
        for number in random.permutation(len(blocks)):
            waiting.append(self._read(*blocks[number]))
            size += len(waiting[-1][0])
            if size >= POOL:
                yield _pool(waiting, self._config.targets, random)
                waiting, size = [], 0
        if size:
            yield _pool(waiting, self._config.targets, random)

    def _batch(self, pool: _Pool, windows: slice, random: np.random.Generator) -> EmbeddingBatch:
        import numpy as np
        import torch

        from apps.recsys.models.embedding.model import EmbeddingBatch

        config = self._config
        if config.popularity:
            drawn = self._cumulative.searchsorted(random.random(config.negatives)).clip(max=config.items - 1)
            correction = self._correction[drawn]
        else:
            drawn = random.integers(config.items, size=config.negatives)
            correction = np.full(config.negatives, self._uniform)
        owner, first = pool.owner[windows], pool.first[windows, None]
        counts = np.diff(pool.starts)[owner][:, None]
        # A user with more items than a window has another window for each group of targets.
        step = np.arange(config.width)
        items = pool.items[pool.starts[owner][:, None] + (first + step) % counts]
        rows, (positions, negatives) = _loaded(items, drawn)
        positions[(step >= counts).nonzero()] = ABSENT
        targets = np.minimum(counts - first, min(config.targets, config.width))
        users, user = np.unique(pool.users[owner], return_inverse=True)
        return EmbeddingBatch(
            rows=torch.from_numpy(rows),
            users=torch.from_numpy(users),
            windows=torch.from_numpy(np.concatenate([targets, user[:, None], positions], 1)),
            negatives=torch.from_numpy(negatives),
            correction=torch.from_numpy(correction),
            prior=torch.zeros(len(rows)) if self.prior is None else torch.from_numpy(self.prior[rows]),
        )


def _loaded(*groups: NDArray[Any]) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Distinct rows of some groups of items, increasing, and each group's positions among them."""
    import numpy as np

    rows, positions = np.unique(np.concatenate([group.ravel() for group in groups]), return_inverse=True)
    ends = np.cumsum([group.size for group in groups])[:-1]
    split = zip(np.split(positions, ends), groups, strict=True)
    return rows.astype(np.int64, copy=False), [part.reshape(group.shape) for part, group in split]


def _pool(blocks: list[_Block], targets: int, random: np.random.Generator) -> _Pool:
    import numpy as np

    items, lengths, users = (np.concatenate(column) for column in zip(*blocks, strict=True))
    # Shuffle within each user: sort by user, then by a random number.
    items = items[np.argsort(np.repeat(np.arange(len(lengths)), lengths) + random.random(len(items)))]
    groups = np.where(lengths > 1, -(-lengths // targets), 0)  # a single item cannot be predicted from others
    owner = np.repeat(np.arange(len(lengths), dtype=np.int32), groups)
    first = targets * (np.arange(len(owner), dtype=np.int32) - np.repeat(np.cumsum(groups) - groups, groups))
    order = random.permutation(len(owner))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return _Pool(items, users, starts, owner[order], first[order].astype(np.int32))
