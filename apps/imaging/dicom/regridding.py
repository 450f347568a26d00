"""Slices that are no regular grid, interpolated onto one: ``--repair tilt,spacing``.

Each slice is shifted within its plane (a tilted gantry's slices lie sideways of one another), and planes of the grid
are interpolated between the two slices around them, both linearly. Beyond a slice its edge is repeated.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from apps.imaging.dicom.slice_geometry import SliceLayout
from apps.imaging.volumes.volume import Shape

Plane = npt.NDArray[np.float32]


class Regridder:
    """Planes of the repaired grid in order, from slices that are asked for in order.

    Parameters
    ----------
    layout
        With ``planes``, ``heights`` and ``shifts``.
    shape
        Of the grid, (x, y, planes).
    next_slice
        Called for each slice in the layout's order: (rows, columns) in the image's own scale.
    """

    def __init__(self, layout: SliceLayout, shape: Shape, next_slice: Callable[[], Plane]) -> None:
        assert layout.heights is not None and layout.shifts is not None
        self._heights, self._shifts, self._shape, self._next_slice = layout.heights, layout.shifts, shape, next_slice
        self._taken = self._given = 0
        self._below = self._above = np.empty((0, 0), np.float32)

    def read(self, out: Plane) -> None:
        """Fill ``out``, (k, y, x), with the next k planes."""
        last = len(self._heights) - 1
        for plane in out:
            upper = min(max(int(np.searchsorted(self._heights, self._given)), 1), last)
            while self._taken <= upper:
                self._below = self._above
                self._above = shifted(self._next_slice(), self._shifts[self._taken], self._shape)
                self._taken += 1
            gap = self._heights[upper] - self._heights[upper - 1]
            weight = np.clip((self._given - self._heights[upper - 1]) / gap, 0, 1)
            np.subtract(self._above, self._below, out=plane)
            plane *= np.float32(weight)
            plane += self._below
            self._given += 1


def shifted(plane: Plane, shift: npt.NDArray[np.float64], shape: Shape) -> Plane:
    """A plane (y, x) moved by ``shift`` voxels along x and y, on a grid of ``shape``."""
    for axis, size, amount in ((0, shape[1], shift[1]), (1, shape[0], shift[0])):
        place = np.clip(np.arange(size) - amount, 0, plane.shape[axis] - 1)
        lower = np.floor(place).astype(np.intp)
        weight = (place - lower).astype(np.float32)[:, None] if axis == 0 else (place - lower).astype(np.float32)
        upper = np.minimum(lower + 1, plane.shape[axis] - 1)
        plane = np.take(plane, lower, axis) * (1 - weight) + np.take(plane, upper, axis) * weight
    return plane


def repair_bytes(shape: Shape) -> int:
    """What a ``Regridder`` holds: two planes, a new one, and interpolation's copies."""
    return 4 * 6 * shape[0] * shape[1]
