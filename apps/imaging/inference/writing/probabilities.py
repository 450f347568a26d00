"""Probabilities of a study's classes in one NIfTI file, ``CASE-probabilities.nii.gz``: a volume for each class.

The file has all of the first class before the second, and blocks come with all classes. So blocks wait on disk, as
whole numbers, and the file is written of them when all are there, one class after the other.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from apps.imaging.inference.labeling.decision import LABEL_BLOCK, label_rows
from apps.imaging.inference.labeling.planes import Array, LabelPlanes, Labels, row_depth
from apps.imaging.inference.labeling.resampling import piece_bytes
from apps.imaging.inference.network_grid import NetworkGrid, restored_channels
from apps.imaging.models.model_folder import Label
from apps.imaging.volumes import nifti
from apps.imaging.volumes.nonzero_crop import uncropped
from apps.imaging.volumes.volume import Shape, Volume
from common.memory.footprint import Price
from common.tiling.blend import FLOAT, Block

Stored = Literal["uint8", "uint16"]
"""Type of the whole numbers; the largest stands for 1. NIfTI has no half precision, and ``uint16`` is finer."""
ENDING = "-probabilities.nii.gz"
_GZIP_LEVEL = 1
"""25 classes of a random network: 83 MiB/s; at level 6 13 MiB/s for a file of 0.88 of the size."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A block that waits on disk."""

    low: Shape
    shape: Shape
    last: bool
    offset: int
    """Bytes in front of it."""


class Probabilities(AbstractContextManager["Probabilities"]):
    """The probabilities of one study; use it as a context manager around all.

    Parameters
    ----------
    volume
        The image, on whose grid they are.
    classes
        The classes that are written, in the order of the network's channels.
    channels
        The channel of each.
    stored
        Type of the whole numbers.
    scratch
        Directory on the disk where blocks wait.
    """

    def __init__(
        self, volume: Volume, classes: Sequence[Label], channels: Sequence[int], stored: Stored, scratch: Path
    ) -> None:
        self._volume, self._classes, self._channels = volume, classes, list(channels)
        self._dtype: np.dtype[np.unsignedinteger] = np.dtype(stored)
        self._scale, self._scratch = int(np.iinfo(self._dtype).max), scratch
        self._pieces: list[_Piece] = []
        self._written = self._depth = 0
        self._low = self._shape = (0, 0, 0)

    def __enter__(self) -> "Probabilities":
        self._spool = tempfile.TemporaryFile(dir=self._scratch)
        return self

    def __exit__(self, *error: object) -> None:
        self._spool.close()

    def place(self, low: Shape | None, shape: Shape, depth: int) -> None:
        """Say which box of the image the blocks fill; around it the first class is certain, if it is background.

        Parameters
        ----------
        low
            Its first voxel; ``None``: it is the whole image.
        shape
            Its size.
        depth
            Planes that one row of blocks finishes at most.
        """
        self._low, self._shape, self._depth = low or (0, 0, 0), shape, depth

    def keep(self, block: Block, rows: Iterable[tuple[int, Array]]) -> None:
        """Store the probabilities of a block.

        Parameters
        ----------
        block
            Of which only the place and the size count.
        rows
            Parts of it along x: the first row of each, and its probabilities (all channels, x, y, k).
        """
        x, y, z = block.values.shape[1:]
        numbers = np.empty((len(self._channels), x, y, z), self._dtype)
        for start, part in rows:
            for place, channel in enumerate(self._channels):
                scaled = part[channel] * np.float32(self._scale)
                numbers[place, start : start + len(scaled)] = np.rint(scaled, out=scaled)
        self._pieces.append(_Piece(block.low, (x, y, z), block.last, self._written))
        self._spool.write(numbers.data)
        self._written += numbers.nbytes

    def save(self, path: Path) -> None:
        """Write the file of all blocks."""
        volume, dtype = self._volume, self._dtype
        like = getattr(volume, "header", None)
        header = nifti.label_header(volume.affine, dtype, (*volume.shape, len(self._classes)), like)
        header.set_slope_inter(1 / self._scale, 0)
        named = [{"value": label.value, "name": label.name} for label in self._classes]
        comment = json.dumps({"classes": named}, ensure_ascii=False)
        self._spool.flush()
        with nifti.write_labels(path, header, comment=comment, level=_GZIP_LEVEL) as writer:
            for number, label in enumerate(self._classes):
                fill = 0 if label.value else self._scale
                for slab in uncropped(self._planes(number), volume.shape, self._low, dtype, fill):
                    writer.write(slab)

    def _planes(self, number: int) -> Iterator[Labels]:
        """Planes of one class in the box."""
        planes = LabelPlanes(self._shape, self._depth, self._dtype)
        for piece in self._pieces:
            size = int(np.prod(piece.shape)) * self._dtype.itemsize
            values: npt.NDArray[np.unsignedinteger] = np.empty(piece.shape, self._dtype)
            os.preadv(self._spool.fileno(), [values.data], piece.offset + number * size)
            yield from planes.add(piece.low, values, last=piece.last)


def probability_bytes(grid: NetworkGrid, classes: int, kept: int, stored: Stored, channels: int) -> Price:
    """Bytes of a study's probabilities: while a block's are stored; while the file is made of all.

    Parameters
    ----------
    classes, kept
        Of the network; of these, those that are written.
    channels
        Channels of the blend's values.

    Returns
    -------
    Price
        ``resident`` is of the first, ``transient`` of the second; they are never there at the same time.
    """
    shape, tiles, itemsize = grid.volume.shape, grid.tiles, np.dtype(stored).itemsize
    if grid.resampled:
        values, along_z = restored_channels(grid, channels, classes), grid.to_file[2]
        numbers = piece_bytes(tiles, shape, values) // (FLOAT * values) * kept * itemsize
        rows = 3 * LABEL_BLOCK
    else:
        x, y, z = map(min, tiles.tile, tiles.shape)
        along_z, numbers = None, x * y * z * kept * itemsize
        rows = 3 * label_rows(classes, channels, y, z) * y * z * max(classes, channels) * FLOAT
    gathered = 3 * shape[0] * shape[1] * row_depth(tiles, shape, along_z) * itemsize
    return Price(numbers + rows, gathered)
