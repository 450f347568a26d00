"""Test-time augmentation by mirroring: the mean of a network's outputs over mirrored inputs.

With n axes it takes 2^n times as long, and two buffers. Features may be averaged instead of logits, because the head
after them is linear.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from common.engines.base import Array, DoubleBuffer, Engine, buffer_count


class MirrorEngine:
    """An engine whose outputs are averaged over mirrored inputs.

    Parameters
    ----------
    engine
        Runs each mirrored input.
    axes
        Axes of the network's x, y, z (0, 1, 2) along which it was trained with mirrored images.
    batch
        Largest number of tiles in a call.
    """

    def __init__(self, engine: Engine, axes: Sequence[int], *, batch: int = 1) -> None:
        self._engine = engine
        spatial = [axis + 2 for axis in axes]  # after batch and channels
        self._flips = [chosen for count in range(1, len(spatial) + 1) for chosen in combinations(spatial, count)]
        self.in_channels, self.out_channels, self.output = engine.in_channels, engine.out_channels, engine.output
        self.each_alone = engine.each_alone
        self._batch = batch
        self._sums: DoubleBuffer | None = None

    def __call__(self, tiles: Array) -> Array:
        """Return the mean of the engine's outputs (see ``Engine``)."""
        first = self._engine(tiles)
        if self._sums is None:
            self._sums = DoubleBuffer((self._batch, *first.shape[1:]))
        total = self._sums.next(len(first))
        total[...] = first
        for axes in self._flips:
            total += np.flip(self._engine(np.ascontiguousarray(np.flip(tiles, axes))), axes)
        total /= np.float32(len(self._flips) + 1)
        return total


def mirror_bytes(*, batch: int, in_channels: int, out_channels: int, voxels: int) -> int:
    """Return the bytes of a ``MirrorEngine`` without its engine: sums, and one mirrored input of ``voxels`` voxels."""
    return 4 * batch * voxels * (in_channels + buffer_count(batch) * out_channels)
