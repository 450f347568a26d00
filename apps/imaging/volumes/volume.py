"""What every input looks like to the rest: a grid in space, and planes that are read once, front to back."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Shape = tuple[int, int, int]
Affine = npt.NDArray[np.float64]


class PlaneReader(Protocol):
    """An open volume; planes come in order along z, the axis that is slowest on disk."""

    def read(self, out: npt.NDArray[Any]) -> None:
        """Fill ``out``, (k, y, x) of the volume's dtype, with the next k planes. Raises ``BadInput``."""
        ...


class Volume(Protocol):
    """One image on disk; only its header has been read."""

    @property
    def shape(self) -> Shape:
        """Voxels along x, y, z as the file counts them."""
        ...

    @property
    def affine(self) -> Affine:
        """(4, 4): voxel index to millimetres, x to the patient's right, y anterior, z superior."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the planes as stored."""
        ...

    @property
    def slope(self) -> float:
        """Stored value times ``slope`` plus ``intercept`` is the image's value."""
        ...

    @property
    def intercept(self) -> float:
        """See ``slope``."""
        ...

    @property
    def reader_bytes(self) -> int:
        """What an open reader holds beside the planes it fills."""
        ...

    def open(self) -> AbstractContextManager[PlaneReader]:
        """Start reading at the first plane."""
        ...

    def identity(self) -> str:
        """A digest of the content's identity, for resuming: no path, no identifier."""
        ...

    def describe(self) -> list[str]:
        """Lines for ``imaging inspect``, without any identifier."""
        ...


def spacing(affine: Affine) -> tuple[float, float, float]:
    """Voxel edges in millimetres."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(x), float(y), float(z)


BLOCK_BYTES = 4 << 20
"""Statistics read the volume in blocks of about this size."""


def block_planes(volume: Volume) -> int:
    """How many planes such a block has."""
    x, y, z = volume.shape
    return max(1, min(z, BLOCK_BYTES // (x * y * volume.dtype.itemsize)))


def blocks(volume: Volume) -> Iterator[npt.NDArray[np.float32]]:
    """One pass over the volume in its own scale, (k, y, x) float32."""
    x, y, z = volume.shape
    buffer = np.empty((block_planes(volume), y, x), volume.dtype)
    with volume.open() as reader:
        for start in range(0, z, len(buffer)):
            planes = buffer[: min(len(buffer), z - start)]
            reader.read(planes)
            yield scaled(volume, planes)


def scaled(volume: Volume, planes: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A float32 copy in the image's own scale."""
    values = planes.astype(np.float32)
    if volume.slope != 1:
        values *= np.float32(volume.slope)
    if volume.intercept != 0:
        values += np.float32(volume.intercept)
    return values
