"""Label planes, gathered from the labels of blocks."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.geometry import LinearInterpolation
from apps.imaging.volumes.volume import Shape
from common.tiling.grid import TileGrid

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.unsignedinteger]


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

    def add(self, low: Shape, labels: Labels, *, last: bool) -> Iterator[Labels]:
        """Store a block's labels; after the last block of a row yields its planes.

        Parameters
        ----------
        low
            The block's first voxel.
        last
            As in ``Block``.

        Yields
        ------
        array (x, y, k)
            Valid until the next call.
        """
        (x, y, z), (width, height, depth) = low, labels.shape
        first = z - self._start
        self._planes[x : x + width, y : y + height, first : first + depth] = labels
        if last:
            yield self._planes[..., : first + depth]
            self._start = z + depth


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
