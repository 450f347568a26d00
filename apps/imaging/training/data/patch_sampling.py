"""Training patches: where they are cut and how they are augmented. Random choices follow from (seed, step, sample).

Volumes are in memory or, if the plan says so, in an uncompressed file of which only the patch is read, or in files of
compressed chunks (``chunks``).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from apps.imaging.training.data import augmentation, chunks
from apps.imaging.training.data.prepared import Classes, Image, is_foreground
from apps.imaging.volumes.volume import Shape
from common.training.distributed.world import ONE, World

if TYPE_CHECKING:
    from torch import Tensor

FOREGROUND_SHARE = 1 / 3
"""Share of patches that are centred on a labelled voxel."""
FOREGROUND_POINTS = 256
"""Labelled voxels of each case that may become centres."""
STORES = ("float32", "float16")
"""Types of the numbers in which prepared images are kept. ``float16`` is off by less than 0.001 below 4 standard
deviations."""


@dataclass(slots=True)
class Volumes:
    """Prepared cases: in memory, in one ``file``, or in a ``folder`` with a file of compressed chunks for each."""

    file: Path | None = None
    store: str = STORES[0]
    """Of ``STORES``."""
    folder: Path | None = None
    shapes: list[Shape] = field(default_factory=list)
    channels: int = 1
    points: list[npt.NDArray[np.int16]] = field(default_factory=list)
    """Some labelled voxels of each case, (n, 3)."""
    spacings: list[tuple[float, float, float]] = field(default_factory=list)
    """Millimetres along the model's axes; all 1 unless they were named."""
    _images: list[npt.NDArray[np.floating]] = field(default_factory=list)
    _classes: list[Classes] = field(default_factory=list)
    _offsets: list[int] = field(default_factory=list)
    _headers: list[chunks.Header] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.shapes)

    def add(
        self,
        image: Image,
        classes: Classes,
        *,
        foreground: npt.NDArray[np.bool_] | None = None,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        key: str = "",
    ) -> None:
        """Store one case.

        Parameters
        ----------
        image
            (channels, x, y, z), contiguous; without channels where images are synthesised.
        classes
            (x, y, z), contiguous; tissues where images are synthesised.
        foreground
            Mask (x, y, z) of the labelled voxels; ``None``: by their class.
        spacing
            Millimetres along the model's axes.
        key
            Digest by which a file of chunks is found again (``chunks.case_key``).
        """
        channels, x, y, z = image.shape
        points = _spread(is_foreground(classes) if foreground is None else foreground)
        stored = image.astype(self.store, copy=False)
        if self.folder is not None:
            header = chunks.Header(key, (x, y, z), channels, self.store, spacing, points.tolist(), 0)
            path = self.folder / f"{key}{chunks.SUFFIX}"
            chunks.write_case(path, header, stored, classes)
            written = chunks.read_header(path)
            assert written is not None
            self._include(written)
            return
        self._note((x, y, z), channels, points, spacing)
        if self.file is None:
            self._images.append(stored)
            self._classes.append(classes)
            return
        with self.file.open("ab") as stream:
            self._offsets.append(stream.tell())
            stream.write(stored.data)
            stream.write(classes.data)

    def reuse(self, key: str) -> bool | None:
        """Take a case that an earlier run has prepared.

        Returns
        -------
        bool or None
            True if there is one; ``None`` if its file is damaged or of another version.
        """
        path = None if self.folder is None else self.folder / f"{key}{chunks.SUFFIX}"
        if path is None or not path.is_file():
            return False
        header = chunks.read_header(path)
        if header is None or header.key != key:
            return None
        self._include(header)
        return True

    def _include(self, header: chunks.Header) -> None:
        points = np.array(header.points, np.int16).reshape(-1, 3)
        self._note(header.shape, header.channels, points, header.spacing)
        self._headers.append(replace(header, points=()))

    def _note(
        self, shape: Shape, channels: int, points: npt.NDArray[np.int16], spacing: tuple[float, float, float]
    ) -> None:
        self.channels = channels
        self.shapes.append(shape)
        self.points.append(points)
        self.spacings.append(spacing)

    def read(self, index: int, start: Shape, stop: Shape) -> tuple[Image, Classes]:
        """Read a region of one case, from voxel ``start`` to before ``stop``, within its bounds: image (channels, x, y,
        z) as float32, and classes (x, y, z)."""
        box = tuple(slice(low, high) for low, high in zip(start, stop, strict=True))
        if self.file is None and self.folder is None:
            image = self._images[index][:, *box]
        else:
            image = np.empty((self.channels, *(part.stop - part.start for part in box)), self.store)
            for number, channel in enumerate(image):
                self._read_part(index, number, box, channel)
        return image.astype(np.float32, copy=False), self.read_classes(index, start, stop)

    def read_classes(self, index: int, start: Shape, stop: Shape) -> Classes:
        """Read the classes (x, y, z) of a region, as ``read`` does, without its image."""
        box = tuple(slice(low, high) for low, high in zip(start, stop, strict=True))
        if self.file is None and self.folder is None:
            return self._classes[index][box]
        classes = np.empty([part.stop - part.start for part in box], np.uint8)
        self._read_part(index, self.channels, box, classes)
        return classes

    def _read_part(self, index: int, channel: int, box: chunks.Box, out: npt.NDArray[Any]) -> None:
        """Read a region of a channel, or of the classes, which come after the last channel."""
        if self.folder is not None:
            header = self._headers[index]
            chunks.read_chunks(self.folder / f"{header.key}{chunks.SUFFIX}", header, channel, box, out)
            return
        assert self.file is not None
        shape = self.shapes[index]
        offset = self._offsets[index] + channel * prod(shape) * np.dtype(self.store).itemsize
        with self.file.open("rb", buffering=0) as stream:
            _read_box(stream.fileno(), offset, shape, box, out)


def _spread(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int16]:
    """Places (n, 3) of up to ``FOREGROUND_POINTS`` voxels of a mask, evenly in C order.

    Only one plane's places exist at a time: those of all voxels are int64.
    """
    counts = mask.reshape(len(mask), -1).sum(1)
    ends, wanted = np.cumsum(counts), FOREGROUND_POINTS if counts.any() else 0
    ranks = np.linspace(0, ends[-1] - 1, wanted).astype(np.intp)
    planes = np.searchsorted(ends, ranks, side="right")
    points = np.empty((wanted, 3), np.int16)
    points[:, 0] = planes
    for plane in np.unique(planes):
        here = planes == plane
        found = np.flatnonzero(mask[plane])[ranks[here] - (ends[plane] - counts[plane])]
        points[here, 1], points[here, 2] = np.unravel_index(found, mask.shape[1:])
    return points


def _read_box(file: int, offset: int, shape: Shape, box: chunks.Box, out: npt.NDArray[Any]) -> None:
    """Read a region of a C-ordered array of shape ``shape`` into ``out``, one run of rows for each x."""
    run = np.empty((out.shape[1], shape[2]), out.dtype)
    for plane, x in zip(out, range(box[0].start, box[0].stop), strict=True):
        start = offset + (x * shape[1] + box[1].start) * shape[2] * out.dtype.itemsize
        if os.preadv(file, [run.reshape(-1).view(np.uint8).data], start) != run.nbytes:
            raise OSError("the training cache is shorter than it was")
        plane[...] = run[:, box[2]]


def drawn(
    share: Sequence[np.random.Generator],
    channels: int,
    patch: Shape,
    one: "Callable[[np.random.Generator, Tensor, Tensor], None]",
) -> "list[Tensor]":
    """Draw samples of a batch.

    Parameters
    ----------
    share
        The random numbers of each.
    one
        Fills the image (channels, x, y, z) and the classes (x, y, z) of a sample.

    Returns
    -------
    list
        Images (B, channels, x, y, z) as float32, and classes (B, x, y, z) as uint8.
    """
    import torch

    images = torch.empty(len(share), channels, *patch)
    classes = torch.empty(len(share), *patch, dtype=torch.uint8)
    for random, image, label in zip(share, images, classes, strict=True):
        one(random, image, label)
    return [images, classes]


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws training batches."""

    volumes: Volumes
    patch: Shape
    batch: int
    seed: int
    mirror: str = "xyz"
    """Axes along which a patch may be reversed; leave out x where left and right are different labels."""
    world: World = ONE
    """The rank whose share of the batch is drawn."""
    augment: str = augmentation.LIGHT
    """Of ``augmentation.KINDS``."""

    def __call__(self, step: int) -> "list[Tensor]":
        """Draw this rank's samples of the batch of one step.

        Returns
        -------
        list
            Images (B, channels, x, y, z) as float32, and classes (B, x, y, z) as uint8.
        """
        share = [np.random.default_rng((self.seed, step, sample)) for sample in self.world.share(self.batch)]
        return drawn(share, self.volumes.channels, self.patch, self._one)

    def _one(self, random: np.random.Generator, image: "Tensor", label: "Tensor") -> None:
        import torch

        index = int(random.integers(len(self.volumes)))
        matrix = augmentation.placed(self.augment, random)
        size = augmentation.region(self.augment, self.patch, matrix)
        values, members = (torch.from_numpy(array) for array in self._cut(random, index, size))
        if matrix is None:
            image.copy_(values)
            label.copy_(members)
        else:
            augmentation.warp(values, members, matrix, image, label)
        axes = ["xyz".index(axis) for axis in self.mirror if random.random() < 0.5]
        image.copy_(image.flip([axis + 1 for axis in axes]))
        label.copy_(label.flip(axes))
        augmentation.vary(self.augment, random, image)

    def _cut(self, random: np.random.Generator, index: int, size: Sequence[int]) -> tuple[Image, Classes]:
        """Cut a region of ``size`` around a drawn centre; outside the volume are zeros (the mean, and background)."""
        shape, points = self.volumes.shapes[index], self.volumes.points[index]
        if len(points) and random.random() < FOREGROUND_SHARE:
            centre = points[random.integers(len(points))].astype(int)
        else:  # so that the patch lies within the volume, or the volume within the patch
            low = [min(edge, whole) // 2 for edge, whole in zip(self.patch, shape, strict=True)]
            spare = [max(0, whole - edge) for edge, whole in zip(self.patch, shape, strict=True)]
            centre = np.array([first + random.integers(more + 1) for first, more in zip(low, spare, strict=True)])
        corner = [int(middle) - edge // 2 for middle, edge in zip(centre, size, strict=True)]
        start = tuple(max(0, low) for low in corner)
        stop = tuple(min(whole, low + edge) for low, edge, whole in zip(corner, size, shape, strict=True))
        image, classes = self.volumes.read(index, start, stop)  # type: ignore[arg-type]
        if classes.shape == tuple(size):
            return np.ascontiguousarray(image), np.ascontiguousarray(classes)
        whole_image, whole_classes = np.zeros((len(image), *size), np.float32), np.zeros(size, np.uint8)
        inside = tuple(slice(a - low, b - low) for a, b, low in zip(start, stop, corner, strict=True))
        whole_image[:, *inside], whole_classes[inside] = image, classes
        return whole_image, whole_classes
