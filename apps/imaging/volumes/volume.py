"""The contract of every input: a grid in space, and planes that are read once, front to back."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Shape = tuple[int, int, int]
Affine = npt.NDArray[np.float64]

BLOCK_BYTES = 4 << 20
"""Passes over a volume, for statistics, read it in blocks of about this size."""
LARGEST_VALUE = 1e18
"""Size of an image's values beyond which their squares overflow float32."""


class PlaneReader(Protocol):
    """An open volume; planes come in order along z, the axis that is slowest on disk."""

    def read(self, out: npt.NDArray[Any]) -> None:
        """Fill ``out``, (k, y, x) of the volume's dtype, with the next k planes.

        Raises
        ------
        BadInput
            If the file ends early or is damaged.
        """
        ...


class Volume(Protocol):
    """One image on disk; only its header has been read.

    A stored value times ``slope`` plus ``intercept`` is the image's value.
    """

    @property
    def shape(self) -> Shape:
        """Voxels along x, y, z in the file's order."""
        ...

    @property
    def affine(self) -> Affine:
        """(4, 4): voxel index to millimetres, x to the patient's right, y anterior, z superior."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored values."""
        ...

    @property
    def slope(self) -> float:
        """Factor of the stored values."""
        ...

    @property
    def intercept(self) -> float:
        """Offset of the stored values, added after ``slope``."""
        ...

    @property
    def reader_bytes(self) -> int:
        """Bytes of an open reader, without the planes that it fills."""
        ...

    def open(self) -> AbstractContextManager[PlaneReader]:
        """Open a reader at the first plane."""
        ...

    def identity(self) -> str:
        """Digest by which the same content is recognised: no path, no identifier."""
        ...

    def describe(self) -> list[str]:
        """Lines for ``imaging inspect``, without any identifier."""
        ...


def spacing(affine: Affine) -> tuple[float, float, float]:
    """Voxel edges in millimetres along x, y, z."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(x), float(y), float(z)


def block_planes(volume: Volume) -> int:
    """Planes of a block of about ``BLOCK_BYTES``."""
    x, y, z = volume.shape
    return max(1, min(z, BLOCK_BYTES // (x * y * volume.dtype.itemsize)))


def blocks(volume: Volume, planes: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
    """Pass over a volume once.

    Parameters
    ----------
    planes
        Of a block; ``None``: as many as ``block_planes`` says.

    Yields
    ------
    array (k, y, x)
        The image's values as float32.
    """
    x, y, z = volume.shape
    buffer = np.empty((planes or block_planes(volume), y, x), volume.dtype)
    with volume.open() as reader:
        for start in range(0, z, len(buffer)):
            block = buffer[: min(len(buffer), z - start)]
            reader.read(block)
            yield scaled(volume, block)


def scaled(volume: Volume, planes: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Copy stored values as float32 and apply slope and intercept."""
    values = planes.astype(np.float32)
    if volume.slope != 1:
        values *= np.float32(volume.slope)
    if volume.intercept != 0:
        values += np.float32(volume.intercept)
    return values
