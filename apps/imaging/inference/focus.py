"""The box of an image that is segmented: found by a coarse pass, kept by the fine one, given up where it is unsure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from apps.imaging.inference.labeling.decision import LogitsToLabels
from apps.imaging.inference.labeling.planes import LabelPlanes, Labels, row_depth
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.models.model_folder import ImagingModel
from apps.imaging.volumes.foreground import positive_box
from apps.imaging.volumes.volume import Shape
from common.tiling.blend import Block

COARSER = 3
"""Size of the coarse pass's voxels over the model's."""
SURE = 0.6
"""Mean probability of what the coarse pass finds, below which its box is not used."""
MINOR = 0.1
"""Share of the largest part of a class below which another part is taken for an error (of a small network trained on
generated volumes at this scale, parts of up to 0.04 were errors)."""


class Unsure(Exception):
    """The box may leave out a part of what is looked for; the message says why."""


@dataclass(frozen=True, slots=True)
class Box:
    """A box of voxels.

    Examples
    --------
    >>> Box((2, 2, 2), (6, 7, 8)).moved((3, 0, 0), (3, 9, 9))
    Box(low=(0, 2, 2), high=(3, 7, 8))
    """

    low: Shape
    """The first voxel."""
    high: Shape
    """One beyond the last."""

    def moved(self, first: Shape, shape: Shape) -> "Box":
        """The same in a part of the volume, as far as it reaches.

        Parameters
        ----------
        first, shape
            The part's first voxel, and its size.

        Raises
        ------
        Unsure
            If no voxel of the box is in the part.
        """
        ends = [
            (max(0, low - start), min(size, high - start))
            for low, high, start, size in zip(self.low, self.high, first, shape, strict=True)
        ]
        if any(low >= high for low, high in ends):
            raise Unsure("its box is outside of what the model sees")
        (x, x_stop), (y, y_stop), (z, z_stop) = ends
        return Box((x, y, z), (x_stop, y_stop, z_stop))

    def kept(self, planes: Iterator[Labels], shape: Shape) -> Iterator[Labels]:
        """Label planes (x, y, k) of a volume, with background outside of the box.

        Raises
        ------
        Unsure
            After the last plane, if labels reach a face of the box that is not one of the volume.
        """
        (x, y, z), (x_stop, y_stop, z_stop) = self.low, self.high
        done, cut = 0, False
        for slab in planes:
            inside = np.zeros_like(slab)
            first, stop = max(z - done, 0), max(z_stop - done, 0)
            inside[x:x_stop, y:y_stop, first:stop] = slab[x:x_stop, y:y_stop, first:stop]
            for axis, (low, high, size) in enumerate(zip(self.low, self.high, shape, strict=True)):
                start = done if axis == 2 else 0
                for face, ends in ((low, low == 0), (high - 1, high == size)):
                    if not ends and 0 <= face - start < inside.shape[axis]:
                        cut = cut or bool(np.take(inside, face - start, axis).any())
            done += slab.shape[2]
            yield inside
        if cut:
            raise Unsure("its box cuts through what was found")


class Found:
    """What the coarse pass finds: label planes of its blocks, how probable they are, and the box around them.

    Parameters
    ----------
    grid
        The coarse network's.
    """

    def __init__(self, to_labels: LogitsToLabels, grid: NetworkGrid) -> None:
        self._to_labels, self._activation = to_labels, grid.inference.activation
        self._tiles = grid.tiles
        self._voxels, self._certain = 0, 0.0

    def planes(self, blocks: Iterator[Block]) -> Iterator[Labels]:
        """Label planes (x, y, k) on the network's grid; each is valid until the next one."""
        shape = self._tiles.shape
        planes = LabelPlanes(shape, row_depth(self._tiles, shape), self._to_labels.dtype)
        for block in blocks:
            labels = self._to_labels(block.values)
            if labels.any():
                self._weigh(block, labels)
            yield from planes.add(block.low, labels, last=block.last)
            del block

    def _weigh(self, block: Block, labels: Labels) -> None:
        self._voxels += int(np.count_nonzero(labels))
        for start, part in self._to_labels.probability_rows(block.values, self._activation):
            inside = labels[start : start + part.shape[1]] != 0
            self._certain += float(part.max(axis=0)[inside].sum(dtype=np.float64))

    def box(self, slabs: Iterator[Labels]) -> Box:
        """The box around all labels of planes, in voxels of the network's grid.

        Raises
        ------
        Unsure
            If nothing was found, or its mean probability is below ``SURE``.
        """
        planes = ((slab[..., number].T != 0) for slab in slabs for number in range(slab.shape[2]))
        (x, y, z), (width, height, depth) = positive_box(planes, self._tiles.shape)
        if not self._voxels:
            raise Unsure("it found nothing")
        if (certain := self._certain / self._voxels) < SURE:
            raise Unsure(f"what it found has a mean probability of {certain:.2f}, less than {SURE}")
        return Box((x, y, z), (x + width, y + height, z + depth))


def coarse(model: ImagingModel) -> ImagingModel:
    """The model for images of a third of its resolution, which are interpolated linearly."""
    x, y, z = (COARSER * size for size in model.spacing)
    return replace(model, spacing=(x, y, z), inference=replace(model.inference, interpolation="linear"))


def focus_bytes(shape: Shape, whole: Shape, itemsize: int, depth: int, label: int) -> int:
    """Bytes that a box adds to the pass over an image: a plane of it as stored, two of the network's grid, and label
    planes of the whole image, three times.

    Parameters
    ----------
    shape, whole
        Shapes of the image and of the network's grid over it.
    itemsize, label
        Bytes of a stored value and of a label.
    depth
        Planes that one row of tiles finishes at most.
    """
    stored, gridded = shape[0] * shape[1] * itemsize, 2 * 4 * whole[0] * whole[1]
    return stored + gridded + 3 * shape[0] * shape[1] * depth * label
