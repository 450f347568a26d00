"""nnU-Net's resampling of images as a stream of planes: cubic splines, or along one axis the nearest plane.

The value of a cubic spline depends on every voxel, but hardly on distant ones: weights fall by 0.27 a voxel. Each axis
is a matrix, made by the function that nnU-Net calls. In the plane it is applied whole, along z to the planes in reach.
"""

from collections.abc import Sequence

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

Array = npt.NDArray[np.float32]


def nearest_axis(first: Sequence[float], second: Sequence[float]) -> int | None:
    """The axis along which nnU-Net takes the nearest voxel between two grids; ``None``: it interpolates along all.

    Parameters
    ----------
    first, second
        Spacings in millimetres; the first one decides if it is anisotropic.

    Examples
    --------
    >>> nearest_axis((1.0, 1.0, 5.0), (1.0, 1.0, 1.0))
    2
    """
    for spacing in (first, second):
        if max(spacing) / min(spacing) > ANISOTROPIC:
            coarse = [axis for axis, size in enumerate(spacing) if size == max(spacing)]
            return coarse[0] if len(coarse) == 1 else None
    return None


def spline_matrix(size: int, new: int) -> Array:
    """Matrix (new, size) of cubic interpolation between grids over the same length, edges repeated."""
    from scipy.ndimage import zoom

    if size == new:
        return np.eye(size, dtype=np.float32)
    columns = [
        zoom(unit, new / size, order=3, mode="nearest", grid_mode=True) for unit in np.eye(size, dtype=np.float64)
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def nearest_matrix(size: int, new: int) -> Array:
    """Matrix (new, size) each of whose rows picks one voxel."""
    matrix = np.zeros((new, size), np.float32)
    matrix[np.arange(new), LinearInterpolation.nearest(size, new).lower] = 1
    return matrix


class SplineReader:
    """Planes of a volume on another grid, after the model's intensity operations.

    Parameters
    ----------
    shape
        Shape of the other grid, along the file's axes.
    nearest
        The axis that is not interpolated; if it is z, each plane is a spline of its own.
    limits
        Least and largest value of the volume before the operations: splines overshoot, and nnU-Net cuts that off.
    """

    def __init__(
        self,
        volume: Volume,
        reader: PlaneReader,
        shape: Shape,
        operations: Sequence[Operation],
        *,
        nearest: int | None,
        limits: tuple[float, float],
    ) -> None:
        self._volume, self._reader, self._operations = volume, reader, operations
        self._x, self._y, self._z = (
            (nearest_matrix if axis == nearest else spline_matrix)(size, new)
            for axis, (size, new) in enumerate(zip(volume.shape, shape, strict=True))
        )
        ends = apply(operations, np.array(limits, np.float32))
        self._limits = None if nearest == 2 else (float(ends.min()), float(ends.max()))
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
    resident = (2 * matrices + ring_planes(z) * shape[0] * shape[1]) * FLOAT + x * y * volume.dtype.itemsize
    return Price(resident, 3 * (x * y + max(x, shape[0]) * max(y, shape[1])) * FLOAT)
