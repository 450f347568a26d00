"""nnU-Net's resampling of images as a stream of planes: cubic splines, or along one axis the nearest plane.

A cubic spline's value depends on every voxel, but hardly on those far away: weights fall by 0.27 a voxel. Each axis is
a matrix, made by the function that nnU-Net calls; in the plane it is applied whole, along z to the planes in reach.
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
"""Spacings that differ by more than this factor: the coarse axis is not interpolated."""
REACH = 14
"""Voxels to either side beyond which a spline's weights are below 1e-8."""

Array = npt.NDArray[np.float32]


def nearest_axis(have: Sequence[float], wanted: Sequence[float]) -> int | None:
    """The axis along which nnU-Net takes the nearest voxel, if there is one."""
    for spacing in (have, wanted):
        if max(spacing) / min(spacing) > ANISOTROPIC:
            coarse = [axis for axis, size in enumerate(spacing) if size == max(spacing)]
            return coarse[0] if len(coarse) == 1 else None
    return None


def spline_matrix(size: int, new: int) -> Array:
    """(new, size): cubic interpolation between grids over the same length, edges repeated."""
    from scipy.ndimage import zoom

    if size == new:
        return np.eye(size, dtype=np.float32)
    columns = [
        zoom(unit, new / size, order=3, mode="nearest", grid_mode=True) for unit in np.eye(size, dtype=np.float64)
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def nearest_matrix(size: int, new: int) -> Array:
    """(new, size): each row picks one voxel."""
    matrix = np.zeros((new, size), np.float32)
    matrix[np.arange(new), LinearInterpolation.nearest(size, new).lower] = 1
    return matrix


class SplineReader:
    """Planes of a volume on another grid, after the model's intensity operations.

    Parameters
    ----------
    nearest
        The axis that is not interpolated; planes are then splines of their own.
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
            (nearest_matrix if axis == nearest else spline_matrix)(have, new)
            for axis, (have, new) in enumerate(zip(volume.shape, shape, strict=True))
        )
        ends = apply(operations, np.array(limits, np.float32))
        self._limits = None if nearest == 2 else (float(ends.min()), float(ends.max()))
        self._stored = np.empty((1, volume.shape[1], volume.shape[0]), volume.dtype)
        self._ring = np.zeros((ring_planes(volume.shape[2]), shape[1], shape[0]), np.float32)
        self._have = self._given = 0

    def read(self, out: Array) -> None:
        """Fill ``out``, (k, y, x), with the next k planes."""
        size, ring = self._volume.shape[2], len(self._ring)
        for plane in out:
            row = self._z[self._given]
            centre = int((self._given + 0.5) * size / len(self._z))
            first, stop = max(0, centre - REACH), min(size, centre + REACH + 1)
            while self._have < stop:
                self._ring[self._have % ring] = self._next()
                self._have += 1
            plane[...] = 0
            for place in range(first, stop):
                if row[place] != 0:
                    plane += row[place] * self._ring[place % ring]
            if self._limits is not None:
                np.clip(plane, *self._limits, out=plane)
            self._given += 1

    def _next(self) -> Array:
        self._reader.read(self._stored)
        values = apply(self._operations, scaled(self._volume, self._stored[0]))
        found = self._y @ values @ self._x.T
        return found if self._limits is not None else np.clip(found, values.min(), values.max())


def ring_planes(planes: int) -> int:
    """How many planes are held along z."""
    return min(planes, 2 * REACH + 1)


def spline_bytes(volume: Volume, shape: Shape) -> Price:
    """A ``SplineReader``: matrices, the planes in reach and one as stored; what one plane passes through."""
    x, y, z = volume.shape
    matrices = sum(have * new for have, new in zip(volume.shape, shape, strict=True))
    held = (2 * matrices + ring_planes(z) * shape[0] * shape[1]) * FLOAT + x * y * volume.dtype.itemsize
    return Price(held, 3 * (x * y + max(x, shape[0]) * max(y, shape[1])) * FLOAT)
