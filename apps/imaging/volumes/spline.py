"""nnU-Net's resampling of images as a stream of planes: cubic splines, or along one axis the nearest plane.

The value of a cubic spline depends on every voxel, but hardly on distant ones: weights fall by 0.27 a voxel. Each axis
is a matrix, that of the function which nnU-Net calls. In the plane it is applied whole, along z to the planes in reach.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.geometry import LinearInterpolation
from apps.imaging.volumes.intensity import Operation, apply
from apps.imaging.volumes.volume import PlaneReader, Shape, Volume, scaled
from common.memory.footprint import Price
from common.tiling.blend import FLOAT

ANISOTROPIC = 3
"""The coarse axis is not interpolated if spacings differ by more than this factor."""
REACH = 14
"""Voxels to either side beyond which a spline's weights are below 1e-8."""

PADDED = 12
"""Samples by which the edges are repeated before the spline's coefficients are found, as SciPy does."""

Array = npt.NDArray[np.float32]


def nearest_axis(first: Sequence[float], second: Sequence[float], separate: bool | None = None) -> int | None:
    """The axis along which nnU-Net takes the nearest voxel between two grids; ``None``: it interpolates along all.

    Parameters
    ----------
    first, second
        Spacings in millimetres; the first one decides if it is anisotropic.
    separate
        True: the coarsest axis of the first one, however anisotropic; False: none.

    Examples
    --------
    >>> nearest_axis((1.0, 1.0, 5.0), (1.0, 1.0, 1.0))
    2
    """
    if separate is False:
        return None
    for spacing in (first, second):
        if separate or max(spacing) / min(spacing) > ANISOTROPIC:
            coarse = [axis for axis, size in enumerate(spacing) if size == max(spacing)]
            return coarse[0] if len(coarse) == 1 else None
    return None


def spline_matrix(size: int, new: int) -> Array:
    """Matrix (new, size) of cubic interpolation between grids over the same length, edges repeated.

    It is that of ``scipy.ndimage.zoom(order=3, mode="nearest", grid_mode=True)``. SciPy itself would be loaded after
    the warm-up, 9 MiB that no plan has.
    """
    if size == new:
        return np.eye(size, dtype=np.float32)
    coefficients = _spline_coefficients(size)
    matrix = np.empty((new, size), np.float32)
    for index in range(new):
        place = (index + 0.5) * (size / new) - 0.5 + PADDED
        first = int(np.floor(place))
        u = place - first
        weights = np.array([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3]) / 6
        matrix[index] = weights @ coefficients[first - 1 : first + 3]
    return matrix


def _spline_coefficients(size: int) -> npt.NDArray[np.float64]:
    """Matrix (size + 2 * PADDED, size): the spline's coefficients of ``size`` samples, the outermost ones repeated.

    They solve ``(c[k - 1] + 4 c[k] + c[k + 1]) / 6 = sample[k]``, mirrored at both ends, by elimination.
    """
    last = size + 2 * PADDED - 1
    matrix = np.zeros((last + 1, size))
    for row in range(last + 1):
        matrix[row, min(max(row - PADDED, 0), size - 1)] = 6
    pivot = np.full(last + 1, 4.0)
    pivot[[0, last]] = 5
    for row in range(1, last + 1):
        matrix[row] -= matrix[row - 1] / pivot[row - 1]
        pivot[row] -= 1 / pivot[row - 1]
    matrix[last] /= pivot[last]
    for row in range(last - 1, -1, -1):
        matrix[row] = (matrix[row] - matrix[row + 1]) / pivot[row]
    return matrix


def nearest_matrix(size: int, new: int) -> Array:
    """Matrix (new, size) each of whose rows picks one voxel."""
    matrix = np.zeros((new, size), np.float32)
    matrix[np.arange(new), LinearInterpolation.nearest(size, new).lower] = 1
    return matrix


@dataclass(frozen=True, slots=True)
class Limits:
    """Least and largest value of a volume, or of each of its planes along an axis."""

    least: Array
    """(1,), or (n,) of the planes along the axis."""
    largest: Array

    @classmethod
    def of(cls, blocks: Iterable[npt.NDArray[np.float32]], axis: int | None) -> "Limits":
        """Find them in one pass over a volume.

        Parameters
        ----------
        blocks
            Planes (k, y, x).
        axis
            0 or 1 for the planes along x or y; ``None`` for the whole volume.
        """
        others = (0, 1, 2) if axis is None else (0, 1) if axis == 0 else (0, 2)
        extremes = [(np.atleast_1d(one.min(axis=others)), np.atleast_1d(one.max(axis=others))) for one in blocks]
        least, largest = (np.array(each, np.float32) for each in zip(*extremes, strict=True))
        return cls(least.min(axis=0), largest.max(axis=0))

    def of_plane(self, shape: Shape, new: Shape, axis: int | None) -> tuple[Array, Array]:
        """Those of the voxels of a plane (y, x) on a grid of shape ``new``, whose planes along ``axis`` are the
        nearest of a volume of ``shape``; to be broadcast."""
        if axis is None:
            return self.least, self.largest
        index = LinearInterpolation.nearest(shape[axis], new[axis]).lower
        turned = (slice(None), None) if axis == 1 else (None, slice(None))
        return self.least[index][turned], self.largest[index][turned]


class SplineReader:
    """Planes of a volume on another grid, after the model's intensity operations.

    Parameters
    ----------
    shape
        Shape of the other grid, along the file's axes.
    nearest
        The axis that is not interpolated; if it is z, each plane is a spline of its own.
    limits
        Least and largest value after the operations, of the volume or of each of its planes along ``nearest``: splines
        overshoot, and nnU-Net cuts that off. They are not needed along z, whose planes are whole.
    """

    def __init__(
        self,
        volume: Volume,
        reader: PlaneReader,
        shape: Shape,
        operations: Sequence[Operation],
        *,
        nearest: int | None,
        limits: Limits | None,
    ) -> None:
        self._volume, self._reader, self._operations = volume, reader, operations
        self._x, self._y, self._z = (
            (nearest_matrix if axis == nearest else spline_matrix)(size, new)
            for axis, (size, new) in enumerate(zip(volume.shape, shape, strict=True))
        )
        self._limits = None if limits is None or nearest == 2 else limits.of_plane(volume.shape, shape, nearest)
        self._stored = np.empty((1, volume.shape[1], volume.shape[0]), volume.dtype)
        self._ring = np.zeros((ring_planes(volume.shape[2]), shape[1], shape[0]), np.float32)
        self._planes_read = self._planes_returned = 0

    def read(self, out: Array) -> None:
        """Fill ``out``, (k, y, x), with the next k planes."""
        size, ring = self._volume.shape[2], len(self._ring)
        for plane in out:
            row = self._z[self._planes_returned]
            centre = int((self._planes_returned + 0.5) * size / len(self._z))
            first, stop = max(0, centre - REACH), min(size, centre + REACH + 1)
            while self._planes_read < stop:
                self._ring[self._planes_read % ring] = self._next()
                self._planes_read += 1
            plane[...] = 0
            for index in range(first, stop):
                if row[index] != 0:
                    plane += row[index] * self._ring[index % ring]
            if self._limits is not None:
                np.clip(plane, *self._limits, out=plane)
            self._planes_returned += 1

    def _next(self) -> Array:
        self._reader.read(self._stored)
        values = apply(self._operations, scaled(self._volume, self._stored[0]))
        plane: Array = np.matmul(np.matmul(self._y, values), self._x.T)
        return plane if self._limits is not None else plane.clip(values.min(), values.max())


def ring_planes(planes: int) -> int:
    """Planes that a ``SplineReader`` keeps along z, of a volume with so many ``planes``."""
    return min(planes, 2 * REACH + 1)


def spline_bytes(volume: Volume, shape: Shape) -> Price:
    """Bytes of a ``SplineReader``: matrices, the planes in reach and one as stored; while it makes one plane."""
    x, y, z = volume.shape
    matrices = sum(size * new for size, new in zip(volume.shape, shape, strict=True))
    resident = (matrices + ring_planes(z) * shape[0] * shape[1]) * FLOAT + x * y * volume.dtype.itemsize
    coefficients = 2 * FLOAT * max((size + 2 * PADDED) * size for size in volume.shape)
    return Price(resident, max(coefficients, 3 * (x * y + max(x, shape[0]) * max(y, shape[1])) * FLOAT))
