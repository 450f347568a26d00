"""A volume as a stream: planes in, on the network's grid, as tiles for the network. Never the whole volume."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.geometry import LinearInterpolation
from apps.imaging.volumes.intensity import Operation, apply
from apps.imaging.volumes.volume import PlaneReader, Shape, Volume, scaled
from common.memory.footprint import Price
from common.tiling.blend import FLOAT
from common.tiling.grid import TileGrid

Array = npt.NDArray[np.float32]


class PlaneRingBuffer:
    """The planes that the present row of tiles needs, as stored, in a ring one tile deep.

    Parameters
    ----------
    ready
        Whether ``reader`` gives float32 planes on the network's grid already.
    edge
        Whether the outermost voxels are repeated around a volume that is smaller than a tile, instead of zeros.
    """

    def __init__(
        self,
        volume: Volume,
        reader: PlaneReader,
        grid: TileGrid,
        operations: Sequence[Operation],
        *,
        ready: bool = False,
        edge: bool = False,
    ) -> None:
        self._volume, self._grid, self._operations, self._edge = volume, grid, operations, edge
        as_it_is = ready or grid.shape == volume.shape
        self._reader = reader if as_it_is else ResamplingReader(volume, reader, grid.shape)
        self._scaled = ready or grid.shape != volume.shape
        dtype = np.dtype(np.float32) if self._scaled else volume.dtype
        x, y, _ = grid.shape
        self._planes = np.empty((window_depth(grid), y, x), dtype)
        self._read = 0

    def advance(self, row: int) -> None:
        """Read on until the row of tiles at ``row`` (in the padded volume) is covered."""
        depth = len(self._planes)
        stop = min(row - self._grid.before[2] + self._grid.tile[2], self._grid.shape[2])
        while self._read < stop:
            slot = self._read % depth
            count = min(stop - self._read, depth - slot)
            self._reader.read(self._planes[slot : slot + count])
            self._read += count

    def fill(self, position: Shape, out: Array) -> None:
        """Write one tile, ready for the network, into ``out``: (x, y, z) in file axes. Padding is zero."""
        low = [start - before for start, before in zip(position, self._grid.before, strict=True)]
        high = [start + size for start, size in zip(low, self._grid.tile, strict=True)]
        kept = [slice(max(0, a), min(b, n)) for a, b, n in zip(low, high, self._grid.shape, strict=True)]
        place = tuple(slice(k.start - a, k.stop - a) for k, a in zip(kept, low, strict=True))
        inside = out[place]
        if inside.shape != out.shape:
            out[...] = 0
        x, y, z = kept
        slots = np.arange(z.start, z.stop) % len(self._planes)
        wrap = int(np.argmin(slots))
        for part, planes in ((slice(0, wrap), slots[:wrap]), (slice(wrap, len(slots)), slots[wrap:])):
            if len(planes):
                block = self._planes[planes[0] : planes[-1] + 1, y, x]
                inside[..., part] = block.transpose(2, 1, 0)
        if not self._scaled:
            if self._volume.slope != 1:
                inside *= np.float32(self._volume.slope)
            if self._volume.intercept != 0:
                inside += np.float32(self._volume.intercept)
        apply(self._operations, inside)
        if self._edge and inside.shape != out.shape:
            _repeat_edges(out, place)


def _repeat_edges(tile: Array, inside: tuple[slice, ...]) -> None:
    """Fill what is around the inside with its outermost voxels, axis by axis."""
    for axis, kept in enumerate(inside):
        view = np.moveaxis(tile, axis, 0)
        view[: kept.start] = view[kept.start]
        view[kept.stop :] = view[kept.stop - 1]


def window_depth(grid: TileGrid) -> int:
    """Planes of a ``PlaneRingBuffer``."""
    return min(grid.tile[2], grid.shape[2])


def window_bytes(volume: Volume, grid: TileGrid, *, resampled: bool = False) -> Price:
    """Bytes of a ``PlaneRingBuffer`` and its reader; ``resampled``: also where the shape stays the same."""
    voxels = grid.shape[0] * grid.shape[1] * window_depth(grid)
    if grid.shape == volume.shape and not resampled:
        return Price(voxels * volume.dtype.itemsize, 0)
    reader = resampling_bytes(volume, grid.shape)
    return Price(voxels * FLOAT + reader.resident, reader.transient)


TINY = np.finfo(np.float32).tiny
"""Nothing, but not zero."""


def _some(mask: npt.NDArray[np.bool_], taps: LinearInterpolation, axis: int) -> npt.NDArray[np.bool_]:
    """Whether any of the voxels is set between which an interpolated one lies."""
    found: npt.NDArray[np.bool_] = np.take(mask, taps.lower, axis) | np.take(mask, taps.upper, axis)
    return found


class ResamplingReader:
    """Planes of a volume on another grid, float32 in the image's own scale.

    Parameters
    ----------
    taps
        Along x, y, z; by default both grids have the same field of view.
    operations
        What is done to voxels before they are interpolated.
    keep_zeros
        Whether a voxel may become zero only where all that it is made of is zero: where zeros are not normalised, a
        sum that happens to cancel must not count as one.
    """

    def __init__(
        self,
        volume: Volume,
        reader: PlaneReader,
        shape: Shape,
        taps: Sequence[LinearInterpolation] | None = None,
        operations: Sequence[Operation] = (),
        *,
        keep_zeros: bool = False,
    ) -> None:
        self._volume, self._reader, self._operations, self._keep_zeros = volume, reader, operations, keep_zeros
        same_view = (LinearInterpolation.between(a, b) for a, b in zip(volume.shape, shape, strict=True))
        self._x, self._y, self._z = taps or same_view
        self._stored = np.empty((1, volume.shape[1], volume.shape[0]), volume.dtype)
        self._lower = self._upper = np.empty((0, 0), np.float32)
        self._some_lower = self._some_upper = np.empty((0, 0), np.bool_)
        self._have, self._given = -1, 0

    def read(self, out: npt.NDArray[np.float32]) -> None:
        """Fill ``out``, (k, y, x), with the next k planes."""
        for plane in out:
            lower, upper = int(self._z.lower[self._given]), int(self._z.upper[self._given])
            while self._have < upper:
                self._reader.read(self._stored)
                self._lower = self._upper
                values = scaled(self._volume, self._stored[0])
                if self._operations:
                    apply(self._operations, values)
                if self._keep_zeros:
                    self._some_lower = self._some_upper
                    self._some_upper = _some(_some(values != 0, self._y, 0), self._x, 1)
                self._upper = self._x(self._y(values, 0), 1)
                self._have += 1
            first = self._lower if lower < self._have else self._upper
            np.subtract(self._upper, first, out=plane)
            plane *= self._z.weight[self._given]
            plane += first
            if self._keep_zeros:
                below = self._some_lower if lower < self._have else self._some_upper
                plane[(below | self._some_upper) & (plane == 0)] = TINY
            self._given += 1


def resampling_bytes(volume: Volume, shape: Shape) -> Price:
    """A ``ResamplingReader``: a stored plane and two of the grid's with their masks; what one plane passes through."""
    x, y, _ = volume.shape
    area, between = shape[0] * shape[1], x * max(y, shape[1])
    held = x * y * volume.dtype.itemsize + 2 * area * (FLOAT + 1)
    return Price(held, (2 * max(area, between) + between) * FLOAT + 2 * area + between)
