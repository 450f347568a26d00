"""A box of a volume on the network's grid, as MONAI's ``CropForeground`` cuts it: found in one pass, then read."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.intensity import Operation, apply
from apps.imaging.volumes.volume import PlaneReader, Shape

Array = npt.NDArray[np.float32]


def positive_box(planes: Iterable[npt.NDArray[np.bool_]], shape: Shape) -> tuple[Shape, Shape]:
    """First voxel and size of the box around all that is true, in the planes (y, x) of a volume; the whole volume if
    nothing is."""
    occupied = [np.zeros(size, bool) for size in shape]
    for number, plane in enumerate(planes):
        occupied[0] |= plane.any(axis=0)
        occupied[1] |= plane.any(axis=1)
        occupied[2][number] = plane.any()
    if not occupied[2].any():
        return (0, 0, 0), shape
    (x, y, z) = (np.flatnonzero(axis) for axis in occupied)
    sizes = [int(axis[-1]) + 1 - int(axis[0]) for axis in (x, y, z)]
    return (int(x[0]), int(y[0]), int(z[0])), (sizes[0], sizes[1], sizes[2])


def with_margin(low: Shape, size: Shape, whole: Shape, margin: Shape, *, smaller: bool) -> tuple[Shape, Shape]:
    """A box with a margin; ``smaller``: only as far as the volume reaches."""
    ends = []
    for first, length, most, more in zip(low, size, whole, margin, strict=True):
        start, stop = first - more, first + length + more
        ends.append((max(start, 0), min(stop, most)) if smaller else (start, stop))
    (x, x_stop), (y, y_stop), (z, z_stop) = ends
    return (x, y, z), (x_stop - x, y_stop - y, z_stop - z)


class BoxedReader:
    """Planes of a box of a volume, after operations; zeros where it reaches beyond the volume.

    Parameters
    ----------
    reader
        Gives float32 planes of the volume.
    shape
        The volume's.
    low, size
        First voxel of the box, which may be negative, and its shape.
    operations
        Applied to the volume's voxels.
    """

    def __init__(
        self, reader: PlaneReader, shape: Shape, low: Shape, size: Shape, operations: Sequence[Operation]
    ) -> None:
        self._reader, self._operations, self._planes = reader, operations, shape[2]
        self._plane = np.empty((1, shape[1], shape[0]), np.float32)
        cuts = [
            (slice(max(first, 0), min(first + length, whole)), max(-first, 0))
            for first, length, whole in zip(low[:2], size[:2], shape[:2], strict=True)
        ]
        (x, left), (y, above) = cuts
        self._from = y, x
        self._to = slice(above, above + y.stop - y.start), slice(left, left + x.stop - x.start)
        self._number = low[2]
        for _ in range(max(low[2], 0)):
            reader.read(self._plane)

    def read(self, out: Array) -> None:
        """Fill ``out``, (k, y, x), with the next k planes of the box."""
        for plane in out:
            plane[...] = 0
            if 0 <= self._number < self._planes:
                self._reader.read(self._plane)
                plane[self._to] = self._plane[0][self._from]
                inside = np.ascontiguousarray(plane[self._to])
                plane[self._to] = apply(self._operations, inside)
            self._number += 1
