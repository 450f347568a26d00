"""Weighted means of overlapping tiles, holding only what a later tile can still change.

A voxel is final once no later tile covers it. Tiles arrive with z outermost, so after each row of tiles (one position
along z) the planes in front of the next row are final: they leave as slabs, and their place in the buffer is used
again. The buffer is one tile deep, whatever the length of the volume.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.tiling.grid import Shape, TileGrid

SLAB_PLANES = 16
"""Planes per slab at most: what the consumer needs beside the blend grows with it; 16 floats fill a cache line."""

FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True, slots=True)
class Slab:
    """Finished planes ``start`` to ``stop`` along z."""

    start: int
    stop: int
    values: npt.NDArray[np.float32]
    """(channels, x, y, stop - start); a view that is valid until the next slab is taken."""


class BoundedBlend:
    """The weighted mean of tiles, plane by plane.

    Parameters
    ----------
    shape, tile, overlap, flips
        As in ``TileGrid``; tiles must be added in its order.
    channels
        Values per voxel: logits, or features before a 1x1x1 head.
    weights
        Importance of each voxel of a tile, shape ``tile``.
    """

    def __init__(
        self,
        shape: Shape,
        tile: Shape,
        overlap: float,
        channels: int,
        weights: npt.NDArray[np.float32],
        *,
        flips: tuple[bool, bool, bool] = (False, False, False),
    ) -> None:
        self.grid = TileGrid(shape, tile, overlap, flips)
        self._positions = list(self.grid)
        self._rows = self.grid.starts(2)
        self._weights = weights
        x, y, _ = self.grid.padded
        self._sum = np.zeros((channels, x, y, tile[2]), np.float32)
        self._weight = np.zeros((x, y, tile[2]), np.float32)
        self._scratch = np.empty(tile, np.float32)
        self._next = 0

    @property
    def nbytes(self) -> int:
        """What the buffers hold."""
        return self._sum.nbytes + self._weight.nbytes + self._scratch.nbytes

    def add(self, index: int, tile: npt.NDArray[np.float32]) -> Iterator[Slab]:
        """Add one tile, (channels, *tile); yields the slabs that this finishes. The iterator must be exhausted.

        Raises
        ------
        ValueError
            If tiles do not arrive in the grid's order.
        """
        if index != self._next:
            raise ValueError(f"tile {index} arrived, tile {self._next} was expected")
        self._next += 1
        x, y, z = self._positions[index]
        plane = np.s_[x : x + self.grid.tile[0], y : y + self.grid.tile[1]]
        pieces = list(self._ring(z, z + self.grid.tile[2]))
        for depth, slots in pieces:
            self._weight[(*plane, slots)] += self._weights[..., depth]
        for total, values in zip(self._sum, tile, strict=True):
            np.multiply(values, self._weights, out=self._scratch)
            for depth, slots in pieces:
                total[(*plane, slots)] += self._scratch[..., depth]
        return self._finish(z) if self._next % self.grid.per_row == 0 else iter(())

    def _ring(self, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """Planes ``start`` to ``stop`` as (planes counted from ``start``, slots in the buffer)."""
        depth, plane = self.grid.tile[2], start
        while plane < stop:
            slot = plane % depth
            count = min(stop - plane, depth - slot)
            yield slice(plane - start, plane - start + count), slice(slot, slot + count)
            plane += count

    def _finish(self, z: int) -> Iterator[Slab]:
        """Yield and forget the planes in front of the row of tiles that follows the one at ``z``."""
        later = [row for row in self._rows if row > z]
        stop = later[0] if later else self.grid.padded[2]
        before, shape = self.grid.before, self.grid.shape
        inside = np.s_[before[0] : before[0] + shape[0], before[1] : before[1] + shape[1]]
        for first in range(z, stop, SLAB_PLANES):
            for depth, slots in self._ring(first, min(first + SLAB_PLANES, stop)):
                low, high = first + depth.start - before[2], first + depth.stop - before[2]
                cut = slice(max(0, -low), depth.stop - depth.start - max(0, high - shape[2]))
                values = self._sum[..., slots]
                if cut.start < cut.stop:
                    kept = values[(slice(None), *inside, cut)]
                    np.divide(kept, self._weight[..., slots][(*inside, cut)], out=kept)
                    yield Slab(low + cut.start, low + cut.stop, kept)
                values[...] = 0
                self._weight[..., slots] = 0


def blend_bytes(shape: Shape, tile: Shape, channels: int) -> int:
    """What a ``BoundedBlend`` of these allocates, without the weights."""
    x, y = max(shape[0], tile[0]), max(shape[1], tile[1])
    return FLOAT * (x * y * tile[2] * (channels + 1) + tile[0] * tile[1] * tile[2])
