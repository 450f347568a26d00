"""Finished blocks of values on the file's grid: linear interpolation, block by block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from apps.imaging.inference.labeling.planes import Array
from apps.imaging.volumes.geometry import LinearInterpolation
from apps.imaging.volumes.volume import Shape
from common.memory.footprint import Price
from common.tiling.blend import FLOAT, Block
from common.tiling.grid import TileGrid

INTERPOLATION_BYTES = 2 << 20
"""Values on the file's grid are made in pieces of about this many bytes."""

SLAB_BYTES = 64 << 20
"""A block is copied with the planes before it in slabs of about this many bytes; with 118 classes a slab of 128x128
voxels has 8 planes, so that a ninth is copied twice."""
LEAST_CHANNELS = 8
"""Blocks of fewer values a voxel are not looked through for agreement (``agreement``), which would take as long as
interpolating them."""
CELL_BYTES = 10
"""Of the classes of a block's voxels, by voxel, while those of the cells between them are found."""


class InverseResampler:
    """Interpolates finished blocks to the file's grid, block by block.

    An output voxel lies between two voxels of the network's grid along each axis; it belongs to the block of the upper
    one. So each block needs the last plane before it along each axis. These planes are kept: of the whole volume along
    z, of one row of blocks along x, of one block along y.

    Parameters
    ----------
    channels
        Channels of the blocks' values.
    shape, file_shape
        Shapes of the network's grid and of the file's, along the file's axes.
    depth
        Planes of a block at most.
    interpolation
        Along x, y, z; by default linear between grids with the same field of view.
    """

    def __init__(
        self,
        channels: int,
        shape: Shape,
        file_shape: Shape,
        depth: int,
        interpolation: Sequence[LinearInterpolation] | None = None,
    ) -> None:
        same_view = (LinearInterpolation.between(a, b) for a, b in zip(shape, file_shape, strict=True))
        self._axes = tuple(interpolation or same_view)
        self._before_x = np.empty((channels, shape[1], depth + 1), np.float32)
        self._before_y = np.empty((channels, 0, 0), np.float32)
        self._before_z = np.empty((channels, shape[0], shape[1]), np.float32)

    def __call__(self, block: Block) -> Iterator[Block]:
        """Interpolate a block; yields its part of the file's grid in pieces along z, possibly none."""
        for slab in self.slabs(block):
            yield from slab.pieces()
            del slab  # before the next one is made

    @property
    def linear(self) -> bool:
        """True if each value is a mean of its neighbours' with weights that add up to one."""
        return all(type(axis) is LinearInterpolation and axis.scale is None for axis in self._axes)

    def slabs(self, block: Block) -> Iterator["PlacedBlock"]:
        """The block in slabs along z, each with the planes before it and with its part of the file's grid.

        Slabs without such a part are left out. Drop each before the next one is made.
        """
        (x, y, z), (lead_x, lead_y, lead_z) = block.low, (int(start > 0) for start in block.low)
        channels, size_x, size_y, size_z = block.values.shape
        along_x, left = _part(self._axes[0], x, block.high[0], lead_x)
        along_y, front = _part(self._axes[1], y, block.high[1], lead_y)
        end = int(np.searchsorted(self._axes[2].upper, block.high[2]))
        edge_x = np.empty((channels, size_y, lead_z + size_z), np.float32)
        edge_y = np.empty((channels, lead_x + size_x, lead_z + size_z), np.float32)
        planes = _slab_planes(channels, lead_x + size_x, lead_y + size_y)
        for start in range(0, size_z, planes):
            stop = min(start + planes, size_z)
            lead = int(z + start > 0)
            cut = slice(lead_z + start - lead, lead_z + stop)
            values = np.empty((channels, lead_x + size_x, lead_y + size_y, lead + stop - start), np.float32)
            values[:, lead_x:, lead_y:, lead:] = block.values[..., start:stop]
            if lead:
                below = block.values[..., start - 1] if start else self._before_z[:, x : x + size_x, y : y + size_y]
                values[:, lead_x:, lead_y:, 0] = below
            if lead_x:
                values[:, 0, lead_y:] = self._before_x[:, y : y + size_y, cut]
            if lead_y:
                values[:, :, 0] = self._before_y[:, :, cut]
            edge_x[..., cut], edge_y[..., cut] = values[:, -1, lead_y:], values[:, :, -1]
            along_z, bottom = _part(self._axes[2], z + start, z + stop, lead)
            axes, corner, top = (along_x, along_y, along_z), (left, front, bottom), bottom + len(along_z.lower)
            if top > bottom:
                yield PlacedBlock(values, axes, corner, block.last and top == end)
            del values
        self._before_x[:, y : y + size_y, : lead_z + size_z] = edge_x
        self._before_y = edge_y
        self._before_z[:, x : x + size_x, y : y + size_y] = block.values[..., -1]


def _part(axis: LinearInterpolation, low: int, high: int, lead: int) -> tuple[LinearInterpolation, int]:
    """The outputs that belong to inputs ``low`` to ``high``, for an array with ``lead`` inputs before them; the first
    output."""
    first, stop = (int(index) for index in np.searchsorted(axis.upper, [low, high]))
    return axis.part(first, stop, low - lead), first


def _slab_planes(channels: int, width: int, height: int) -> int:
    """Planes of a block that are interpolated at once."""
    return max(1, SLAB_BYTES // (FLOAT * channels * width * height))


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """A slab of a block on the network's grid, and its part of the file's."""

    values: Array
    """(channels, x, y, z), with the planes before the slab."""
    axes: tuple[LinearInterpolation, LinearInterpolation, LinearInterpolation]
    """Along x, y and z, from ``values`` to the part."""
    low: Shape
    """The part's first voxel."""
    last: bool
    """As in ``Block``."""

    @property
    def shape(self) -> Shape:
        """The part's shape."""
        x, y, z = (len(axis.lower) for axis in self.axes)
        return x, y, z

    def pieces(self) -> Iterator[Block]:
        """The part's values in pieces along z, possibly none."""
        (along_x, along_y, along_z), (x, y, planes) = self.axes, self.shape
        channels, width, height, _ = self.values.shape
        plane_bytes = FLOAT * channels * max(x, width) * max(y, height)
        step = max(1, INTERPOLATION_BYTES // max(1, plane_bytes))
        for first in range(0, planes, step):
            stop = min(first + step, planes)
            corner, last = (self.low[0], self.low[1], self.low[2] + first), self.last and stop == planes
            yield Block(corner, along_y(along_x(along_z.part(first, stop, 0)(self.values, 3), 1), 2), last)


def back_bytes(grid: TileGrid, shape: Shape, channels: int) -> Price:
    """Bytes of an ``InverseResampler``: the planes that it keeps; while it makes a piece, without the slab.

    Parameters
    ----------
    grid
        The network's grid.
    shape
        Shape of the file's grid.
    """
    x, y, _ = grid.shape
    width, height, depth = (min(size, whole) + 1 for size, whole in zip(grid.tile, grid.shape, strict=True))
    before = x * y + y * depth + width * depth + (width + height) * depth
    # Along y, the last axis: what is interpolated, and twice what becomes of it.
    copies = 1 / max(1.0, shape[1] / y) + 2
    cells = CELL_BYTES * slab_bytes(grid, channels) // (FLOAT * channels) if channels >= LEAST_CHANNELS else 0
    transient = max(int(copies * piece_bytes(grid, shape, channels)), cells)
    return Price(FLOAT * channels * before, transient)


def slab_bytes(grid: TileGrid, channels: int) -> int:
    """Bytes of a slab with the planes before it, which stays while its pieces are taken."""
    width, height, depth = (min(size, whole) + 1 for size, whole in zip(grid.tile, grid.shape, strict=True))
    planes = min(depth, _slab_planes(channels, width - 1, height - 1) + 1)
    return FLOAT * channels * width * height * planes


def piece_bytes(grid: TileGrid, shape: Shape, channels: int) -> int:
    """Bytes of one of the pieces in which an ``InverseResampler`` gives a block, at most."""
    sizes = zip(grid.tile, grid.shape, shape, strict=True)
    x, y, _ = (int((min(tile, old) + 1) * max(1.0, new / old)) + 1 for tile, old, new in sizes)
    return max(INTERPOLATION_BYTES, FLOAT * channels * x * y)
