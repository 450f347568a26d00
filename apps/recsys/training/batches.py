"""Batches of the ``embedding`` model, streamed from the history on disk.

Blocks of users are read in random order into a pool, whose pairs are shuffled: an epoch is one pass over the files,
and memory does not grow with them. Every batch draws from a generator of its own, so that a training goes on after
any batch exactly as it would have.
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


_Part = tuple["NDArray[np.int32]", "NDArray[np.int64]", "NDArray[np.int64]"]


@dataclass(frozen=True, slots=True)
class _Pool:
    """Users' items in memory, one user after the other and each user's in random order, and the windows to train on."""

    items: NDArray[np.int32]
    users: NDArray[np.int64]
    """Their rows."""
    starts: NDArray[np.int64]
    """Where each user's items begin, and the end."""
    owner: NDArray[np.int32]
    """User of each window, in the order of training."""
    first: NDArray[np.int32]
    """Which of the user's items the window begins with: its targets."""


class Batches:
    """Epochs of batches.

    Parameters
    ----------
    history
        Who had what.
    kept
        Which of it is trained on.
    """

    def __init__(self, history: History, kept: Kept, config: EmbeddingConfig, *, seed: int) -> None:
        import numpy as np

        self._history, self._kept, self._config, self._seed = history, kept, config, seed
        self.windows = 0
        """Windows in an epoch."""
        counts = np.zeros(config.items, np.int64)
        for start, stop in history.blocks():
            items, lengths, _ = self._read(start, stop)
            counts += np.bincount(items, minlength=config.items)
            self.windows += int((-(-lengths[lengths > 1] // config.targets)).sum())
        share = np.maximum(counts, 1) ** config.popularity  # every item may be drawn, also one that nobody had
        self._until = np.cumsum(share / share.sum())
        self._correction = np.log(share / share.sum() * config.negatives).astype(np.float32)
        self.prior = (config.prior * np.log(counts + 1)).astype(np.float32)
        """What each item's score has beforehand."""
        # Scratch, as long as the catalogue: which rows a batch touches, and where they are among the loaded.
        self._touched = np.zeros(config.items, bool)
        self._place = np.zeros(config.items, np.int64)

    def epoch(self, number: int, *, after: int = 0) -> Iterator[EmbeddingBatch]:
        """The batches of an epoch, without the first ``after``."""
        import numpy as np

        size, done = self._config.batch, 0
        for pool in self._pools(np.random.default_rng([self._seed, number])):
            for start in range(0, len(pool.owner), size):
                done += 1
                if done > after:
                    random = np.random.default_rng([self._seed, number, done])
                    yield self._batch(pool, slice(start, start + size), random)

    def _read(self, start: int, stop: int) -> _Part:
        """Kept items of a range of users, how many each has, and the users."""
        import numpy as np

        keep = self._kept.mask(start, stop)
        ends = self._history.indptr[start : stop + 1] - self._history.indptr[start]
        before = np.concatenate([[0], np.cumsum(keep)])[ends]
        return self._history.items(start, stop)[keep], np.diff(before), np.arange(start, stop)

    def _pools(self, random: np.random.Generator) -> Iterator[_Pool]:

        blocks = list(self._history.blocks())
        waiting: list[_Part] = []
        size = 0
        for number in random.permutation(len(blocks)):
            waiting.append(self._read(*blocks[number]))
            size += len(waiting[-1][0])
            if size >= POOL:
                yield _pool(waiting, self._config.targets, random)
                waiting, size = [], 0
        if size:
            yield _pool(waiting, self._config.targets, random)

    def _batch(self, pool: _Pool, part: slice, random: np.random.Generator) -> EmbeddingBatch:
        import numpy as np
        import torch

        from apps.recsys.models.embedding.model import EmbeddingBatch

        config = self._config
        if config.popularity:
            drawn = self._until.searchsorted(random.random(config.negatives)).clip(max=config.items - 1)
        else:
            drawn = random.integers(config.items, size=config.negatives)
        owner, first = pool.owner[part], pool.first[part, None]
        many = np.diff(pool.starts)[owner][:, None]
        # Users with more items than a window holds are seen through another one for each group of targets.
        step = np.arange(config.width)
        known = pool.items[pool.starts[owner][:, None] + (first + step) % many]
        rows, (places, negatives) = self._loaded(known, drawn)
        places[(step >= many).nonzero()] = ABSENT
        targets = np.minimum(many - first, min(config.targets, config.width))
        users, place = np.unique(pool.users[owner], return_inverse=True)
        return EmbeddingBatch(
            rows=torch.from_numpy(rows),
            users=torch.from_numpy(users),
            windows=torch.from_numpy(np.concatenate([targets, place[:, None], places], 1)),
            negatives=torch.from_numpy(negatives),
            correction=torch.from_numpy(self._correction[drawn]),
            prior=torch.from_numpy(self.prior[rows]),
        )

    def _loaded(self, *groups: NDArray[Any]) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        """Distinct rows of some items, increasing, and each group's places among them."""
        import numpy as np

        for group in groups:
            self._touched[group] = True
        rows = self._touched.nonzero()[0]
        self._touched[rows] = False
        self._place[rows] = np.arange(len(rows))
        return rows, [self._place[group] for group in groups]


def _pool(parts: list[_Part], targets: int, random: np.random.Generator) -> _Pool:
    import numpy as np

    items, lengths, users = (np.concatenate(column) for column in zip(*parts, strict=True))
    # Shuffled within each user: sorted by user, then by a random number.
    items = items[np.argsort(np.repeat(np.arange(len(lengths)), lengths) + random.random(len(items)))]
    groups = np.where(lengths > 1, -(-lengths // targets), 0)  # a single item has nothing to be predicted from
    owner = np.repeat(np.arange(len(lengths), dtype=np.int32), groups)
    first = targets * (np.arange(len(owner), dtype=np.int32) - np.repeat(np.cumsum(groups) - groups, groups))
    order = random.permutation(len(owner))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return _Pool(items, users, starts, owner[order], first[order].astype(np.int32))
