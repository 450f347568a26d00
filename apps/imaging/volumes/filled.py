"""nnU-Net's mask of a study: voxels that are zero in every channel, apart from holes; and images that show it.

Zeros outside the mask stay zero in a normalisation of nonzero voxels. Those inside are made the smallest number that is
not zero, so that they are normalised, whatever reads the image.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.volume import Affine, PlaneReader, Shape, Volume, scaled
from common.tiling.blend import FLOAT

TINY = np.finfo(np.float32).tiny
"""Smallest normal float32: as good as zero, but not zero."""
Plane = npt.NDArray[np.bool_]


class MaskFile(AbstractContextManager["MaskFile"]):
    """A mask on disk, one bit a voxel.

    Parameters
    ----------
    shape
        Voxels along x, y, z.
    scratch
        Directory of the file, which has no name.
    """

    def __init__(self, shape: Shape, scratch: Path) -> None:
        self._shape = shape
        self._stream = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115
        self._bytes = -(-shape[0] * shape[1] // 8)

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def write(self, planes: Iterable[Plane]) -> None:
        """Append planes (y, x) in order."""
        for plane in planes:
            self._stream.write(np.packbits(plane).data)
        self._stream.flush()

    def plane(self, number: int) -> Plane:
        """Read one plane (y, x)."""
        x, y, _ = self._shape
        packed = os.pread(self._stream.fileno(), self._bytes, number * self._bytes)
        return np.unpackbits(np.frombuffer(packed, np.uint8), count=x * y).reshape(y, x).view(np.bool_)


class Filled:
    """A volume whose zeros inside a mask are ``TINY``.

    Parameters
    ----------
    mask
        Of the same shape; ``None`` in a plan, where nothing is read.
    """

    dtype: np.dtype[Any] = np.dtype(np.float32)
    slope, intercept = 1.0, 0.0

    def __init__(self, volume: Volume, mask: MaskFile | None = None) -> None:
        self._volume, self._mask = volume, mask
        self.shape: Shape = volume.shape
        x, y, _ = volume.shape
        self.reader_bytes = volume.reader_bytes + x * y * (volume.dtype.itemsize + FLOAT + 3)

    @property
    def affine(self) -> Affine:
        """(4, 4)."""
        return self._volume.affine

    @contextmanager
    def open(self) -> Iterator[PlaneReader]:
        """Open a reader at the first plane."""
        assert self._mask is not None
        with self._volume.open() as reader:
            yield _FilledReader(self._volume, reader, self._mask)

    def identity(self) -> str:
        """The volume's digest."""
        return self._volume.identity()

    def describe(self) -> list[str]:
        """The volume's lines."""
        return self._volume.describe()


class _FilledReader:
    def __init__(self, volume: Volume, reader: PlaneReader, mask: MaskFile) -> None:
        self._volume, self._reader, self._mask = volume, reader, mask
        self._plane = np.empty((1, volume.shape[1], volume.shape[0]), volume.dtype)
        self._number = 0

    def read(self, out: npt.NDArray[Any]) -> None:
        for plane in out:
            self._reader.read(self._plane)
            plane[...] = scaled(self._volume, self._plane[0])
            inside = self._mask.plane(self._number)
            inside &= plane == 0
            plane[inside] = TINY
            self._number += 1
