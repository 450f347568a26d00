"""``--repair tilt,spacing``: interpolate slices to a regular grid.

Each slice is shifted within its plane, because the slices of a tilted gantry are displaced against each other; then
planes of the grid are interpolated between the two slices around them. Both are linear, and a slice's edge is repeated
outside of it.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from apps.imaging.dicom.slice_geometry import SliceLayout
from apps.imaging.volumes.volume import Shape

Plane = npt.NDArray[np.float32]


class Regridder:
    """Makes the planes of the grid in order, from slices that it reads in order.

    Parameters
    ----------
    layout
        With ``planes``, ``heights`` and ``shifts``.
    shape
        Shape of the grid, (x, y, planes).
    next_slice
        Returns the next slice in the layout's order: (rows, columns) in the image's own scale.
    """

    def __init__(self, layout: SliceLayout, shape: Shape, next_slice: Callable[[], Plane]) -> None:
        assert layout.heights is not None and layout.shifts is not None
        self._heights, self._shifts, self._shape, self._next_slice = layout.heights, layout.shifts, shape, next_slice
        self._slices_read = self._planes_returned = 0
        self._below = self._above = np.empty((0, 0), np.float32)

    def read(self, out: Plane) -> None:
        """Fill ``out``, (k, y, x), with the next k planes."""
        last = len(self._heights) - 1
        for plane in out:
            upper = min(max(int(np.searchsorted(self._heights, self._planes_returned)), 1), last)
            while self._slices_read <= upper:
                self._below = self._above
                self._above = shifted(self._next_slice(), self._shifts[self._slices_read], self._shape)
                self._slices_read += 1
            gap = self._heights[upper] - self._heights[upper - 1]
            weight = np.clip((self._planes_returned - self._heights[upper - 1]) / gap, 0, 1)
            np.subtract(self._above, self._below, out=plane)
            plane *= np.float32(weight)
            plane += self._below
            self._planes_returned += 1


def shifted(plane: Plane, shift: npt.NDArray[np.float64], shape: Shape) -> Plane:
    """Shift a plane within a grid.

    Parameters
    ----------
    plane
        (rows, columns).
    shift
        Voxels along x and y.
    shape
        Shape of the grid, (x, y, planes).

    Returns
    -------
    array (y, x)
    """
    for axis, size, amount in ((0, shape[1], shift[1]), (1, shape[0], shift[0])):
        position = np.clip(np.arange(size) - amount, 0, plane.shape[axis] - 1)
        lower = np.floor(position).astype(np.intp)
        weight = (position - lower).astype(np.float32)
        weight = weight[:, None] if axis == 0 else weight
        upper = np.minimum(lower + 1, plane.shape[axis] - 1)
        plane = np.take(plane, lower, axis) * (1 - weight) + np.take(plane, upper, axis) * weight
    return plane


def repair_bytes(shape: Shape) -> int:
    """Bytes of a ``Regridder`` for a grid of ``shape``: two planes, a new one, and the copies of interpolation."""
    return 4 * 6 * shape[0] * shape[1]
