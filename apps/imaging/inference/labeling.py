"""From finished blocks of values to label planes: resampling to the file's grid, the head, the decision."""

from collections.abc import Iterator, Sequence
from copy import copy
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.geometry import LinearInterpolation
from apps.imaging.volumes.volume import Shape
from common.memory.footprint import Price
from common.tiling.blend import FLOAT, Block
from common.tiling.grid import TileGrid

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.unsignedinteger]
Activation = Literal["softmax", "sigmoid"]

INTERPOLATION_BYTES = 2 << 20
"""Values on the file's grid are made in pieces of about this many bytes."""
LABEL_BLOCK = 2 << 20
"""Bytes of logits that are compared at a time."""


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
        values = self._extended(block)
        leads = [int(start > 0) for start in block.low]
        axes, starts = [], []
        for axis, low, high, lead in zip(self._axes, block.low, block.high, leads, strict=True):
            first, stop = (int(index) for index in np.searchsorted(axis.upper, [low, high]))
            axes.append(axis.part(first, stop, low - lead))
            starts.append(first)
        along_x, along_y, along_z = axes
        planes = len(along_z.lower)
        plane_bytes = (
            FLOAT * len(values) * max(len(along_x.lower), values.shape[1]) * max(len(along_y.lower), values.shape[2])
        )
        step = max(1, INTERPOLATION_BYTES // max(1, plane_bytes))
        for first in range(0, planes, step):
            stop = min(first + step, planes)
            corner, last = (starts[0], starts[1], starts[2] + first), block.last and stop == planes
            yield Block(corner, along_y(along_x(along_z.part(first, stop, 0)(values, 3), 1), 2), last)

    def _extended(self, block: Block) -> Array:
        """The block with the planes before it; its own last planes then take their place."""
        (x, y, _), (lead_x, lead_y, lead_z) = block.low, (int(start > 0) for start in block.low)
        channels, size_x, size_y, size_z = block.values.shape
        whole = np.empty((channels, size_x + lead_x, size_y + lead_y, size_z + lead_z), np.float32)
        whole[:, lead_x:, lead_y:, lead_z:] = block.values
        if lead_z:
            whole[:, lead_x:, lead_y:, 0] = self._before_z[:, x : x + size_x, y : y + size_y]
        if lead_x:
            whole[:, 0, lead_y:] = self._before_x[:, y : y + size_y, : size_z + lead_z]
        if lead_y:
            whole[:, :, 0] = self._before_y
        self._before_y = whole[:, :, -1].copy()
        self._before_x[:, y : y + size_y, : size_z + lead_z] = whole[:, -1, lead_y:]
        self._before_z[:, x : x + size_x, y : y + size_y] = whole[:, lead_x:, lead_y:, -1]
        return whole


def back_bytes(grid: TileGrid, shape: Shape, channels: int) -> Price:
    """Bytes of an ``InverseResampler``: the planes that it keeps; while it makes a piece, without the extended block.

    Parameters
    ----------
    grid
        The network's grid.
    shape
        Shape of the file's grid.
    """
    x, y, _ = grid.shape
    width, _, depth = (min(size, whole) + 1 for size, whole in zip(grid.tile, grid.shape, strict=True))
    before = x * y + y * depth + width * depth
    # Along y, the last axis: what is interpolated, and twice what becomes of it.
    copies = 1 / max(1.0, shape[1] / y) + 2
    transient = int(copies * piece_bytes(grid, shape, channels))
    return Price(FLOAT * channels * before, transient)


def extended_bytes(grid: TileGrid, channels: int) -> int:
    """Bytes of a block with the planes before it, which stays while its pieces are taken."""
    return FLOAT * channels * prod(min(size, whole) + 1 for size, whole in zip(grid.tile, grid.shape, strict=True))


def piece_bytes(grid: TileGrid, shape: Shape, channels: int) -> int:
    """Bytes of one of the pieces in which an ``InverseResampler`` gives a block, at most."""
    sizes = zip(grid.tile, grid.shape, shape, strict=True)
    x, y, _ = (int((min(tile, old) + 1) * max(1.0, new / old)) + 1 for tile, old, new in sizes)
    return max(INTERPOLATION_BYTES, FLOAT * channels * x * y)


class LabelPlanes:
    """Gathers labels block by block until planes are complete.

    Parameters
    ----------
    shape
        Shape of the file's grid.
    depth
        Planes of one row of blocks at most.
    """

    def __init__(self, shape: Shape, depth: int, dtype: np.dtype[np.unsignedinteger]) -> None:
        self._planes = np.empty((*shape[:2], depth), dtype)
        self._start = 0

    def add(self, block: Block, labels: Labels) -> Iterator[Labels]:
        """Store a block's labels; after the last block of a row yields its planes.

        Yields
        ------
        array (x, y, k)
            Valid until the next call.
        """
        (x, y, z), (x_stop, y_stop, z_stop) = block.low, block.high
        self._planes[x:x_stop, y:y_stop, z - self._start : z_stop - self._start] = labels
        if block.last:
            yield self._planes[..., : z_stop - self._start]
            self._start = z_stop


def row_depth(grid: TileGrid, shape: Shape, along_z: LinearInterpolation | None = None) -> int:
    """Planes of the file's grid that one row of blocks finishes at most.

    Parameters
    ----------
    grid, shape
        The network's grid, and the shape of the file's.
    along_z
        The interpolation between them, as for ``InverseResampler``.
    """
    starts = [max(0, start - grid.before[2]) for start in grid.starts(2)]
    starts[0] = 0
    stops = [*starts[1:], grid.shape[2]]
    if shape == grid.shape and along_z is None:
        return max(stop - start for start, stop in zip(starts, stops, strict=True))
    upper = (along_z or LinearInterpolation.between(grid.shape[2], shape[2])).upper
    edges = np.searchsorted(upper, [0, *stops])
    return int(np.diff(edges).max())


def label_dtype(values: Sequence[int]) -> np.dtype[np.unsignedinteger]:
    """The smaller of uint8 and uint16 that holds all label values."""
    return np.dtype(np.uint8) if max(values) < 256 else np.dtype(np.uint16)


class LogitsToLabels:
    """Makes labels of finished values: applies the 1x1x1 head if there is one, then decides.

    Parameters
    ----------
    values
        Label values by class.
    head
        Weight (classes, channels) and bias (classes,), if the values are features.
    kept
        Label values that are written. All classes compete; a voxel of one that is not kept becomes background.
    decision
        As in ``Inference``: the class of the largest logit, the last region that is found, or a bit for each class.
    order
        Regions in the order in which they write; ascending without one.
    threshold
        Logit above which a region or class is found.
    inclusive
        True if the threshold itself is found too, as in MONAI.
    """

    def __init__(
        self,
        values: Sequence[int],
        head: tuple[Array, Array] | None = None,
        kept: Sequence[int] | None = None,
        *,
        decision: Literal["largest", "regions", "bits"] = "largest",
        order: Sequence[int] = (),
        threshold: float = 0.0,
        inclusive: bool = False,
    ) -> None:
        self.dtype, self.classes = label_dtype(values), len(values)
        self._values = np.asarray([value if kept is None or value in kept else 0 for value in values], self.dtype)
        self._identical = bool((self._values == np.arange(len(values))).all())
        self._head, self._decision, self._order = head, decision, order or range(len(values))
        self._threshold, self._found = np.float32(threshold), np.greater_equal if inclusive else np.greater

    def __call__(self, values: Array) -> npt.NDArray[np.unsignedinteger]:
        """Labels (x, y, k) of values (channels, x, y, k); of equal logits the first class wins, as in ``argmax``."""
        _, x, y, planes = values.shape
        rows = label_rows(len(self._values), values.shape[0], y, planes)
        labels = np.empty((x, y, planes), self.dtype)
        for start in range(0, x, rows):
            labels[start : start + rows] = self._of_rows(values[:, start : start + rows])
        return labels

    def _of_rows(self, values: Array) -> Labels:
        logits = self._logits(values)
        if self._decision == "largest":
            index = _largest(logits, self.dtype)
            return index if self._identical else self._values[index]
        labels, found = np.zeros(logits.shape[1:], self.dtype), np.empty(logits.shape[1:], bool)
        for channel in self._order:
            self._found(logits[channel], self._threshold, out=found)
            if self._decision == "bits":
                labels |= found * self._values[channel]
            else:
                np.copyto(labels, self._values[channel], where=found)
        return labels

    def _logits(self, values: Array) -> Array:
        if self._head is None:
            return values
        logits: Array = self._head[0] @ values.reshape(values.shape[0], -1)
        logits += self._head[1][:, None]
        return logits.reshape(len(logits), *values.shape[1:])  # which may be empty, if no voxel of the file is there

    def probabilities(self, values: Array, kind: Activation) -> Array:
        """Probabilities (classes, x, y, k) in float32 of values (channels, x, y, k), by the activation ``kind``."""
        result = np.empty((len(self._values), *values.shape[1:]), np.float32)
        for start, part in self.probability_rows(values, kind):
            result[:, start : start + part.shape[1]] = part
        return result

    def probability_rows(self, values: Array, kind: Activation) -> Iterator[tuple[int, Array]]:
        """The same in parts along x: each part's first row, and its probabilities."""
        _, x, y, planes = values.shape
        rows = label_rows(len(self._values), values.shape[0], y, planes)
        for start in range(0, x, rows):
            part = np.array(self._logits(values[:, start : start + rows]), np.float32)
            if kind == "softmax":
                part -= part.max(axis=0)
                np.exp(part, out=part)
                part /= part.sum(axis=0)
            else:
                np.negative(part, out=part)
                np.exp(part, out=part)
                part += 1
                np.reciprocal(part, out=part)
            yield start, part

    def of_probabilities(self) -> "LogitsToLabels":
        """The same for ``probabilities``, whose threshold is the logit's sigmoid."""
        other = copy(self)
        other._head = None
        other._threshold = np.float32(1 / (1 + np.exp(-np.float64(self._threshold))))
        return other


def label_rows(classes: int, channels: int, y: int, planes: int) -> int:
    """Rows along x whose logits are compared at a time."""
    return max(1, LABEL_BLOCK // max(1, max(classes, channels) * y * planes * FLOAT))


def _largest(logits: Array, dtype: np.dtype[np.unsignedinteger]) -> npt.NDArray[np.unsignedinteger]:
    """``logits.argmax(axis=0)`` in one or two bytes a voxel instead of eight."""
    best, index = logits[0].copy(), np.zeros(logits.shape[1:], dtype)
    larger = np.empty(logits.shape[1:], bool)
    for number, others in enumerate(logits[1:], start=1):
        np.greater(others, best, out=larger)
        np.copyto(index, dtype.type(number), where=larger)
        np.maximum(best, others, out=best)
    return index


def label_bytes(
    grid: TileGrid,
    shape: Shape,
    classes: int,
    channels: int,
    dtype: np.dtype[np.unsignedinteger],
    along_z: LinearInterpolation | None = None,
    *,
    copied: bool,
) -> Price:
    """Bytes of the planes that are gathered; of one block's labels, and of the rows that are compared.

    Parameters
    ----------
    grid, shape
        The network's grid, and the shape of the file's.
    channels
        Channels of the blend's values.
    along_z
        The interpolation between the grids, as for ``InverseResampler``.
    copied
        True if the values are copied first: to logits by the head, or to probabilities.
    """
    depth = row_depth(grid, shape, along_z)
    plane, block = shape[0] * shape[1], [min(tile, size) for tile, size in zip(grid.tile, grid.shape, strict=True)]
    rows = min(block[0], label_rows(classes, channels, block[1], block[2]))
    voxel = (channels + classes if copied else 0) * FLOAT + FLOAT + 2 + dtype.itemsize
    return Price(plane * depth * dtype.itemsize, prod(block) * dtype.itemsize + rows * block[1] * block[2] * voxel)
