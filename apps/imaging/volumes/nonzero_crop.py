"""nnU-Net's crop: the box of voxels that are not zero, the volume inside it, and labels back onto the whole volume."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.volume import Affine, PlaneReader, Shape, Volume

Labels = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True)
class Content:
    """Results of one pass over a volume."""

    low: Shape
    """First voxel of the box around all voxels that are not zero; of the whole volume if all are."""
    high: Shape
    """One beyond its last voxel."""
    limits: tuple[float, float]
    """Least and largest value."""


def content(shape: Shape, blocks: Iterable[npt.NDArray[np.float32]]) -> Content:
    """Find the box and the extremes of a volume of ``shape`` from its planes, (k, y, x) at a time."""
    occupied = [np.zeros(size, bool) for size in shape]
    start, least, largest = 0, np.inf, -np.inf
    for block in blocks:
        nonzero = block != 0
        flat = nonzero.any(axis=0)
        occupied[0] |= flat.any(axis=0)
        occupied[1] |= flat.any(axis=1)
        occupied[2][start : start + len(block)] = nonzero.any(axis=(1, 2))
        least, largest = min(least, float(block.min())), max(largest, float(block.max()))
        start += len(block)
    if not occupied[2].any():
        return Content((0, 0, 0), shape, (least, largest))
    (x, y, z) = (np.flatnonzero(axis) for axis in occupied)
    low, high = (int(x[0]), int(y[0]), int(z[0])), (int(x[-1]) + 1, int(y[-1]) + 1, int(z[-1]) + 1)
    return Content(low, high, (least, largest))


def union(contents: Sequence[Content]) -> tuple[Shape, Shape]:
    """First voxel, and one beyond the last, of the smallest box around several; empty volumes do not count."""
    contents = [each for each in contents if each.limits != (0.0, 0.0)] or contents
    low_x, low_y, low_z = (min(each.low[axis] for each in contents) for axis in range(3))
    high_x, high_y, high_z = (max(each.high[axis] for each in contents) for axis in range(3))
    return (low_x, low_y, low_z), (high_x, high_y, high_z)


class Cropped:
    """The box of a volume, as a volume.

    Parameters
    ----------
    low, high
        First voxel of the box, and one beyond its last.
    """

    def __init__(self, volume: Volume, low: Shape, high: Shape) -> None:
        self._volume, self._low = volume, low
        x, y, z = (stop - start for start, stop in zip(low, high, strict=True))
        self.shape: Shape = (x, y, z)
        self.dtype, self.slope, self.intercept = volume.dtype, volume.slope, volume.intercept
        self.reader_bytes = cropped_bytes(volume)

    @property
    def affine(self) -> Affine:
        """(4, 4): the volume's, moved to the box's first voxel."""
        moved = self._volume.affine.copy()
        moved[:3, 3] += moved[:3, :3] @ np.array(self._low)
        return moved

    @contextmanager
    def open(self) -> Iterator[PlaneReader]:
        """Open a reader at the box's first plane."""
        with self._volume.open() as reader:
            yield _BoxReader(self._volume, reader, self._low, self.shape)

    def identity(self) -> str:
        """The whole volume's digest, from which the box follows."""
        return self._volume.identity()

    def describe(self) -> list[str]:
        """The whole volume's lines."""
        return self._volume.describe()


def cropped_bytes(volume: Volume) -> int:
    """Bytes that reading a box takes: its volume's reader, and one whole plane."""
    return volume.reader_bytes + volume.shape[0] * volume.shape[1] * volume.dtype.itemsize


class _BoxReader:
    def __init__(self, volume: Volume, reader: PlaneReader, low: Shape, shape: Shape) -> None:
        self._reader, self._low, self._shape = reader, low, shape
        self._plane = np.empty((1, volume.shape[1], volume.shape[0]), volume.dtype)
        for _ in range(low[2]):
            reader.read(self._plane)

    def read(self, out: npt.NDArray[Any]) -> None:
        (x, y, _), (width, height, _) = self._low, self._shape
        for plane in out:
            self._reader.read(self._plane)
            plane[...] = self._plane[0, y : y + height, x : x + width]


def uncropped(
    planes: Iterable[Labels], shape: Shape, low: Shape, dtype: np.dtype[Any], fill: int = 0
) -> Iterator[Labels]:
    """Put label planes of a box into the whole volume, with background around them.

    Parameters
    ----------
    planes
        (x, y, k) of the box, in order.
    shape
        Shape of the whole volume.
    low
        First voxel of the box.
    fill
        Value around it.

    Yields
    ------
    array (x, y, k)
        Planes of the whole volume.
    """
    x, y, z = low
    yield from _background(shape, z, dtype, fill)
    done = z
    for labels in planes:
        whole = np.full((*shape[:2], labels.shape[2]), fill, dtype)
        whole[x : x + labels.shape[0], y : y + labels.shape[1]] = labels
        yield whole
        done += labels.shape[2]
    yield from _background(shape, shape[2] - done, dtype, fill)


def _background(shape: Shape, planes: int, dtype: np.dtype[Any], fill: int) -> Iterator[Labels]:
    for _ in range(planes):
        yield np.full((*shape[:2], 1), fill, dtype)
