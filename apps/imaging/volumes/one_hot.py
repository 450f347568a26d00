"""Labels as further channels of a network: where each is found, on the network's grid, as nnU-Net's cascade has it."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.filled import MaskFile
from apps.imaging.volumes.geometry import LinearInterpolation
from apps.imaging.volumes.volume import PlaneReader, Shape, Volume

OUTSIDE, BACKGROUND = 0, 1
"""Kinds of voxels without a label: nnU-Net has a label of its own for those outside its mask. Kind 2 is the first
label's."""
PLACE_BYTES = 2 + 8
"""Bytes on disk for each voxel of the network's grid: the kind with most, whether the nearest has as much, how much."""
Kinds = npt.NDArray[np.uint8]


class StoredLabels(Protocol):
    """Labels of a whole image on disk."""

    def plane(self, number: int) -> npt.NDArray[np.unsignedinteger]:
        """Read one plane, (x, y)."""
        ...


class StageLabels:
    """The kind of each voxel in the box that a network sees.

    Parameters
    ----------
    labels
        Labels of the whole image.
    low, shape
        First voxel of the box, and its size.
    values
        Label of each channel of the network.
    inside
        nnU-Net's mask of the box.
    """

    def __init__(self, labels: StoredLabels, low: Shape, shape: Shape, values: Sequence[int], inside: MaskFile) -> None:
        self._labels, self._low, self.shape, self._inside = labels, low, shape, inside
        self.values = tuple(values)
        self._table = np.full(max(values) + 1, BACKGROUND, np.uint8)
        for channel, value in enumerate(values):
            self._table[value] = BACKGROUND + 1 + channel

    def plane(self, number: int) -> Kinds:
        """Kinds of a plane of the box, (y, x)."""
        (x, y, z), (width, height, _) = self._low, self.shape
        kinds: Kinds = self._table[self._labels.plane(z + number)[x : x + width, y : y + height].T]
        kinds[(kinds == BACKGROUND) & ~self._inside.plane(number)] = OUTSIDE
        return kinds


class _Shares:
    """How much of a kind is in the voxels of another grid, plane by plane.

    The sums are SciPy's (``ndimage.zoom``, order 1), to the last bit, since equal shares of two kinds are common and
    have to be equal here too: double precision, the weight along z first, x the fastest.
    """

    def __init__(self, labels: StageLabels, shape: Shape, nearest: int | None) -> None:
        self._labels = labels
        sizes = zip(labels.shape, shape, strict=True)
        self._x, self._y, self._z = (_corners(size, new, axis == nearest) for axis, (size, new) in enumerate(sizes))
        self._planes: dict[int, Kinds] = {}

    def of(self, kind: int, number: int) -> npt.NDArray[np.float64]:
        """The share of a kind in plane ``number``, (y, x)."""
        share = np.zeros((len(self._y[0][0]), len(self._x[0][0])))
        for index_z, weight_z in self._z:
            if not weight_z[number]:
                continue
            plane = self._plane(int(index_z[number])) == kind
            for index_y, weight_y in self._y:
                along_y = (weight_z[number] * weight_y)[:, None]
                for index_x, weight_x in self._x:
                    corner = along_y * weight_x
                    corner *= plane[np.ix_(index_y, index_x)]
                    share += corner
        return share

    def _plane(self, number: int) -> Kinds:
        if number not in self._planes:
            self._planes = {other: plane for other, plane in self._planes.items() if number - 2 < other <= number}
            self._planes[number] = self._labels.plane(number)
        return self._planes[number]


Corner = tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]
"""Index of a voxel for each of another grid along an axis, and its weight."""


def _corners(size: int, new: int, nearest: bool) -> tuple[Corner, ...]:
    """The voxels along an axis between which each of ``new`` lies over the same length."""
    if nearest:
        return ((LinearInterpolation.nearest(size, new).lower, np.ones(new)),)
    position = np.clip((np.arange(new) + 0.5) * (size / new) - 0.5, 0, size - 1)
    lower = np.floor(position).astype(np.intp)
    share = position - lower
    return (lower, 1 - share), (np.minimum(lower + 1, size - 1), share)


class OneHot(AbstractContextManager["OneHot"]):
    """Labels on the network's grid, on disk.

    Each kind of voxel is interpolated alone, and the one of which there is most wins; of those of which there is the
    same, that of the nearest voxel, else the first. This is ``resize_segmentation`` of nnU-Net's library
    ``batchgenerators`` (0.25.2 and later; before, a label was where at least half of it is), with order 1. One kind is
    worked through after the other, so that memory does not grow with their number.

    Parameters
    ----------
    labels
        Labels of the box that the network sees.
    shape
        Shape of the network's grid.
    nearest
        The file's axis along which images are resampled to the nearest voxel.
    scratch
        Directory of the file, which has no name.
    """

    def __init__(self, labels: StageLabels, shape: Shape, nearest: int | None, scratch: Path) -> None:
        self._shape, self.channels = shape, len(labels.values)
        self._stream = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115
        sizes = zip(labels.shape, shape, strict=True)
        x, y, z = (LinearInterpolation.nearest(size, new).lower for size, new in sizes)
        for kind in range(BACKGROUND + 1 + self.channels):
            shares = _Shares(labels, shape, nearest)
            for number in range(shape[2]):
                self._compete(kind, number, shares.of(kind, number), labels.plane(z[number])[np.ix_(y, x)] == kind)
        for number in range(shape[2]):
            winner, top, _ = self._state(number)
            np.copyto(winner, labels.plane(z[number])[np.ix_(y, x)], where=top.view(np.bool_))
            self._write(number, winner, top)

    def _compete(self, kind: int, number: int, share: npt.NDArray[np.float64], nearest: npt.NDArray[np.bool_]) -> None:
        """Let a kind take the voxels of a plane of which it has more than all before it.

        Parameters
        ----------
        nearest
            True where the nearest voxel is of this kind.
        """
        if not kind:
            self._write(number, np.zeros(nearest.shape, np.uint8), nearest, share)
            return
        winner, top, best = self._state(number)
        better, level = share > best, share == best
        winner[better] = kind
        top |= (level & nearest).view(np.uint8)
        top[better] = nearest[better]
        self._write(number, winner, top, np.maximum(best, share, out=best))

    def _state(self, number: int) -> tuple[Kinds, Kinds, npt.NDArray[np.float64]]:
        """A plane's winners so far, whether the nearest voxel's kind is among those with most, and how much that is."""
        x, y, _ = self._shape
        plane = (np.empty((y, x), np.uint8), np.empty((y, x), np.uint8), np.empty((y, x), np.float64))
        os.preadv(self._stream.fileno(), [part.data for part in plane], number * x * y * PLACE_BYTES)
        return plane

    def _write(self, number: int, *parts: npt.NDArray[Any]) -> None:
        x, y, _ = self._shape
        os.pwritev(self._stream.fileno(), [part.data for part in parts], number * x * y * PLACE_BYTES)

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def plane(self, number: int) -> Kinds:
        """Kinds of a plane of the network's grid, (y, x)."""
        x, y, _ = self._shape
        plane = np.empty((y, x), np.uint8)
        os.preadv(self._stream.fileno(), [plane.data], number * x * y * PLACE_BYTES)
        return plane

    def reader(self, channel: int) -> PlaneReader:
        """Planes (y, x) of a channel in float32, ones where its label is."""
        return _ChannelReader(self, BACKGROUND + 1 + channel)


class _ChannelReader:
    def __init__(self, labels: OneHot, kind: int) -> None:
        self._labels, self._kind, self._next = labels, kind, 0

    def read(self, out: npt.NDArray[Any]) -> None:
        for plane in out:
            plane[...] = self._labels.plane(self._next) == self._kind
            self._next += 1


def one_hot_bytes(volume: Volume, shape: Shape) -> int:
    """Bytes while a ``OneHot`` of a box is made: planes of kinds, and those of the network's grid that compete."""
    return 16 * volume.shape[0] * volume.shape[1] + shape[0] * shape[1] * (4 * 8 + 8)
