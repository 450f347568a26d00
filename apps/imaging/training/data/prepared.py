"""Prepare a case for training: resample it to the network's grid, turn it to its axes, normalise its intensities."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from apps.imaging.training.data.dataset import ORIENTATION, Dataset, LabelledCase, label_values
from apps.imaging.training.data.facts import check_listed
from apps.imaging.training.losses.labels import IGNORED
from apps.imaging.volumes.geometry import AxisMapping, network_grid, resample
from apps.imaging.volumes.intensity import apply, resolve
from apps.imaging.volumes.stored import FileVolume
from apps.imaging.volumes.volume import Shape, block_planes, blocks

Image = npt.NDArray[np.float32]
Classes = npt.NDArray[np.uint8]
Operations = Sequence[Mapping[str, Any]]
"""On the intensities of one channel (``apps.imaging.volumes.intensity``)."""
Value = TypeVar("Value", bound=np.generic)


def load_case(case: LabelledCase, dataset: Dataset, operations: Sequence[Operations]) -> tuple[Image, Classes]:
    """Read one case, and turn it to the network's grid, axes and intensities.

    Parameters
    ----------
    operations
        For each channel.

    Returns
    -------
    tuple
        Image (channels, x, y, z) and classes (x, y, z), contiguous, in the model's axes; class k is the k-th label, and
        ``IGNORED`` where the data set says so.

    Raises
    ------
    BadInput
        Truncated data, or label values that the data set does not list.
    """
    mapping = AxisMapping.between(case.image.affine, ORIENTATION)
    grid = network_grid(case.image.shape, case.image.affine, mapping.to_file(dataset.spacing))
    classes = _classes(case, dataset)
    if classes.shape != grid:
        classes = nearest(classes, grid)
    classes = np.ascontiguousarray(to_model(classes, mapping))
    image = to_model(_channel(case.images[0], operations[0], grid), mapping)[None]
    if len(case.images) > 1:
        first, image = image, np.empty((len(case.images), *classes.shape), np.float32)
        image[0] = first[0]
        del first
        for channel, volume, chosen in zip(image[1:], case.images[1:], operations[1:], strict=True):
            channel[...] = to_model(_channel(volume, chosen, grid), mapping)
    return np.ascontiguousarray(image), classes


def _channel(volume: FileVolume, operations: Operations, grid: Shape) -> Image:
    """One channel (x, y, z) in the file's axes, normalised, on the network's grid."""
    whole = _whole(volume)
    whole = apply(resolve(operations, lambda: [whole]), whole)
    return whole if whole.shape == grid else resample(whole, grid)


def _whole(volume: FileVolume) -> Image:
    """The volume (x, y, z) in the file's axes and the image's scale."""
    x, y, z = volume.shape
    whole = np.empty((z, y, x), np.float32)
    start = 0
    for block in blocks(volume):
        whole[start : start + len(block)] = block
        start += len(block)
    return whole.transpose(2, 1, 0)


def _classes(case: LabelledCase, dataset: Dataset) -> Classes:
    labels = dataset.labels
    check_listed(case, map(int, label_values(case)), dataset)
    table = np.zeros(256, np.uint8)
    table[list(labels)] = np.arange(len(labels), dtype=np.uint8)
    if dataset.ignored is not None:
        table[dataset.ignored] = IGNORED
    x, y, z = case.label.shape
    whole = np.empty((z, y, x), np.uint8)
    start = 0
    for block in blocks(case.label):
        whole[start : start + len(block)] = table[block.astype(np.uint8)]
        start += len(block)
    return whole.transpose(2, 1, 0)


def nearest(classes: Classes, grid: Shape) -> Classes:
    """Classes (x, y, z) on another grid with the same field of view, without interpolation."""
    for axis, (size, new) in enumerate(zip(classes.shape, grid, strict=True)):
        if size != new:
            indices = np.minimum(((np.arange(new) + 0.5) * (size / new)).astype(np.intp), size - 1)
            classes = np.take(classes, indices, axis)
    return classes


def to_model(array: npt.NDArray[Value], mapping: AxisMapping) -> npt.NDArray[Value]:
    """View (x, y, z) of the file's axes in the model's; the inverse of ``AxisMapping.view``."""
    unflipped = array[tuple(slice(None, None, -1) if flip else slice(None) for flip in mapping.flips)]
    return unflipped.transpose(np.argsort(mapping.axes))


def is_foreground(classes: Classes) -> npt.NDArray[np.bool_]:
    """Mask of the voxels that are neither background nor ignored."""
    mask: npt.NDArray[np.bool_] = (classes > 0) & (classes != IGNORED)
    return mask


def loading_bytes(case: LabelledCase, voxels: int) -> int:
    """Bytes of ``load_case`` without its results: blocks as stored and scaled, and a channel before resampling.

    Parameters
    ----------
    voxels
        Of the case on the network's grid, to which a channel is resampled beside the others.
    """
    return max(map(_reading_bytes, case.images)) + (4 * voxels if len(case.images) > 1 else 0)


def _reading_bytes(volume: FileVolume) -> int:
    voxels = prod(volume.shape)
    block = block_planes(volume) * volume.shape[0] * volume.shape[1]
    return block * (volume.dtype.itemsize + 2 * 4 + 8) + voxels * (4 + 1) + volume.reader_bytes
