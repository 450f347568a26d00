"""A volume as a stream: its planes on the network's grid, cut into tiles. The whole volume is never in memory."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.filled import TINY
from apps.imaging.volumes.geometry import LinearInterpolation
from apps.imaging.volumes.intensity import Operation, apply
from apps.imaging.volumes.volume import PlaneReader, Shape, Volume, scaled
from common.memory.footprint import Price
from common.tiling.blend import FLOAT
from common.tiling.grid import TileGrid

Array = npt.NDArray[np.float32]


class PlaneRingBuffer:
    """The planes under the present row of tiles, in a ring that is one tile deep.

    Parameters
    ----------
    operations
        On intensities, applied to each tile.
    ready
        True if ``reader`` gives float32 planes on the network's grid already.
    edge
        True: a volume that is smaller than a tile is surrounded by its outermost voxels instead of zeros.
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
        same_grid = ready or grid.shape == volume.shape
        self._reader = reader if same_grid else ResamplingReader(volume, reader, grid.shape)
        self._scaled = ready or grid.shape != volume.shape
        dtype = np.dtype(np.float32) if self._scaled else volume.dtype
        x, y, _ = grid.shape
        self._planes = np.empty((window_depth(grid), y, x), dtype)
        self._planes_read = 0

    def advance(self, row: int) -> None:
        """Read on until all planes under the row of tiles at plane ``row`` of the padded volume are there."""
        depth = len(self._planes)
        stop = min(row - self._grid.before[2] + self._grid.tile[2], self._grid.shape[2])
        while self._planes_read < stop:
            slot = self._planes_read % depth
            count = min(stop - self._planes_read, depth - slot)
            self._reader.read(self._planes[slot : slot + count])
            self._planes_read += count

    def fill(self, position: Shape, out: Array) -> None:
        """Write a tile, ready for the network.

        Parameters
        ----------
        position
            Its first voxel in the padded volume.
        out
            (x, y, z) in file axes.
        """
        low = [start - before for start, before in zip(position, self._grid.before, strict=True)]
        high = [start + size for start, size in zip(low, self._grid.tile, strict=True)]
        kept = [slice(max(0, a), min(b, n)) for a, b, n in zip(low, high, self._grid.shape, strict=True)]
        box = tuple(slice(k.start - a, k.stop - a) for k, a in zip(kept, low, strict=True))
        inside = out[box]
        if inside.shape != out.shape:
            out[...] = 0
        x, y, z = kept
        slots = np.arange(z.start, z.stop) % len(self._planes)
        wrap = int(np.argmin(slots))
        for planes, run in ((slice(0, wrap), slots[:wrap]), (slice(wrap, len(slots)), slots[wrap:])):
            if len(run):
                block = self._planes[run[0] : run[-1] + 1, y, x]
                inside[..., planes] = block.transpose(2, 1, 0)
        if not self._scaled:
            if self._volume.slope != 1:
                inside *= np.float32(self._volume.slope)
            if self._volume.intercept != 0:
                inside += np.float32(self._volume.intercept)
        apply(self._operations, inside)
        if self._edge and inside.shape != out.shape:
            _repeat_edges(out, box)


def _repeat_edges(tile: Array, box: tuple[slice, ...]) -> None:
    """Fill a tile around ``box`` with the outermost voxels inside it, axis by axis."""
    for axis, kept in enumerate(box):
        view = np.moveaxis(tile, axis, 0)
        view[: kept.start] = view[kept.start]
        view[kept.stop :] = view[kept.stop - 1]


def window_depth(grid: TileGrid) -> int:
    """Planes of a ``PlaneRingBuffer``."""
    return min(grid.tile[2], grid.shape[2])


def window_bytes(volume: Volume, grid: TileGrid, *, resampled: bool = False) -> Price:
    """Bytes of a ``PlaneRingBuffer`` with its reader, and while it reads a plane.

    Parameters
    ----------
    resampled
        True: the volume is resampled even if its shape stays the same.
    """
    voxels = grid.shape[0] * grid.shape[1] * window_depth(grid)
    if grid.shape == volume.shape and not resampled:
        return Price(voxels * volume.dtype.itemsize, 0)
    reader = resampling_bytes(volume, grid.shape)
    return Price(voxels * FLOAT + reader.resident, reader.transient)


def _any_nonzero(mask: npt.NDArray[np.bool_], axis_map: LinearInterpolation, axis: int) -> npt.NDArray[np.bool_]:
    """True where an interpolated voxel lies between two voxels of which any is set."""
    either: npt.NDArray[np.bool_] = np.take(mask, axis_map.lower, axis) | np.take(mask, axis_map.upper, axis)
    return either


class ResamplingReader:
    """Planes of a volume on another grid, as float32 in the image's own scale.

    Parameters
    ----------
    shape
        Shape of the other grid, along the file's axes.
    interpolation
        Along x, y, z; by default both grids have the same field of view.
    operations
        On intensities, before voxels are interpolated.
    keep_zeros
        True: a voxel may become zero only if all voxels between which it lies are zero. Where zeros are left out of
        a normalisation, a sum that happens to cancel must not count as one.
    """

    def __init__(
        self,
        volume: Volume,
        reader: PlaneReader,
        shape: Shape,
        interpolation: Sequence[LinearInterpolation] | None = None,
        operations: Sequence[Operation] = (),
        *,
        keep_zeros: bool = False,
    ) -> None:
        self._volume, self._reader, self._operations, self._keep_zeros = volume, reader, operations, keep_zeros
        same_view = (LinearInterpolation.between(a, b) for a, b in zip(volume.shape, shape, strict=True))
        self._x, self._y, self._z = interpolation or same_view
        self._stored = np.empty((1, volume.shape[1], volume.shape[0]), volume.dtype)
        self._lower = self._upper = np.empty((0, 0), np.float32)
        self._nonzero_lower = self._nonzero_upper = np.empty((0, 0), np.bool_)
        self._last_read, self._planes_returned = -1, 0

    def read(self, out: npt.NDArray[np.float32]) -> None:
        """Fill ``out``, (k, y, x), with the next k planes."""
        for plane in out:
            lower, upper = int(self._z.lower[self._planes_returned]), int(self._z.upper[self._planes_returned])
            while self._last_read < upper:
                self._reader.read(self._stored)
                self._lower = self._upper
                values = scaled(self._volume, self._stored[0])
                if self._operations:
                    apply(self._operations, values)
                if self._keep_zeros:
                    self._nonzero_lower = self._nonzero_upper
                    self._nonzero_upper = _any_nonzero(_any_nonzero(values != 0, self._y, 0), self._x, 1)
                self._upper = self._x(self._y(values, 0), 1)
                self._last_read += 1
            first = self._lower if lower < self._last_read else self._upper
            np.subtract(self._upper, first, out=plane)
            plane *= self._z.weight[self._planes_returned]
            plane += first
            if self._keep_zeros:
                below = self._nonzero_lower if lower < self._last_read else self._nonzero_upper
                plane[(below | self._nonzero_upper) & (plane == 0)] = TINY
            self._planes_returned += 1


class AreaReader:
    """Planes of a volume on another grid, as float32 in the image's own scale, each voxel the mean of those that it
    covers.

    Parameters
    ----------
    interpolation
        Along x, y, z.
    operations
        On intensities, before means are taken.
    """

    def __init__(
        self,
        volume: Volume,
        reader: PlaneReader,
        interpolation: Sequence[LinearInterpolation],
        operations: Sequence[Operation] = (),
    ) -> None:
        self._volume, self._reader, self._operations = volume, reader, operations
        self._x, self._y, self._z = interpolation
        self._stored = np.empty((1, volume.shape[1], volume.shape[0]), volume.dtype)
        self._last = np.empty((0, 0), np.float32)
        self._last_read, self._planes_returned = -1, 0

    def read(self, out: npt.NDArray[np.float32]) -> None:
        """Fill ``out``, (k, y, x), with the next k planes."""
        for plane in out:
            lower, upper = int(self._z.lower[self._planes_returned]), int(self._z.upper[self._planes_returned])
            plane[...] = 0
            for number in range(lower, upper + 1):
                while self._last_read < number:
                    self._reader.read(self._stored)
                    values = scaled(self._volume, self._stored[0])
                    if self._operations:
                        apply(self._operations, values)
                    self._last = self._x(self._y(values, 0), 1)
                    self._last_read += 1
                plane += self._last  # planes that two outputs cover come last in the one and first in the other
            plane /= upper - lower + 1
            self._planes_returned += 1


def resampling_bytes(volume: Volume, shape: Shape) -> Price:
    """Bytes of a ``ResamplingReader``: a stored plane and two of the grid's with masks; while it makes one plane. An
    ``AreaReader`` takes no more."""
    x, y, _ = volume.shape
    area, between = shape[0] * shape[1], x * max(y, shape[1])
    resident = x * y * volume.dtype.itemsize + 2 * area * (FLOAT + 1)
    return Price(resident, (2 * max(area, between) + between) * FLOAT + 2 * area + between)
