"""Prepare a case for training: resample it to the network's grid, turn it to its axes, normalise its intensities."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from apps.imaging.training.dataset import DESCRIPTION, ORIENTATION, Dataset, LabelledCase, label_values
from apps.imaging.volumes.geometry import AxisMapping, network_grid, resample
from apps.imaging.volumes.intensity import apply, resolve
from apps.imaging.volumes.nifti import NiftiVolume
from apps.imaging.volumes.volume import Shape, block_planes, blocks
from common.errors import BadInput

Image = npt.NDArray[np.float32]
Classes = npt.NDArray[np.uint8]
Value = TypeVar("Value", bound=np.generic)


def load_case(case: LabelledCase, dataset: Dataset, operations: Sequence[Mapping[str, Any]]) -> tuple[Image, Classes]:
    """Read one case, and turn it to the network's grid, axes and intensities.

    Returns
    -------
    tuple
        Image (x, y, z) and classes (x, y, z), contiguous, in the model's axes; class k is the k-th label.

    Raises
    ------
    BadInput
        Truncated data, or label values that the data set does not list.
    """
    mapping = AxisMapping.between(case.image.affine, ORIENTATION)
    grid = network_grid(case.image.shape, case.image.affine, mapping.to_file(dataset.spacing))
    classes = _classes(case, dataset.labels)
    image = _whole(case.image)
    image = apply(resolve(operations, lambda: [image]), image)
    if image.shape != grid:
        image, classes = resample(image, grid), _nearest(classes, grid)
    return _to_model(image, mapping), _to_model(classes, mapping)


def _whole(volume: NiftiVolume) -> Image:
    """The volume (x, y, z) in the file's axes and the image's scale."""
    x, y, z = volume.shape
    whole = np.empty((z, y, x), np.float32)
    start = 0
    for block in blocks(volume):
        whole[start : start + len(block)] = block
        start += len(block)
    return whole.transpose(2, 1, 0)


def _classes(case: LabelledCase, labels: Mapping[int, str]) -> Classes:
    unknown = sorted(set(map(int, label_values(case))) - set(labels))
    if unknown:
        values = ", ".join(map(str, unknown))
        raise BadInput(
            f"case {case.name}: label values {values} are not listed in {DESCRIPTION}", public="label values"
        )
    table = np.zeros(256, np.uint8)
    table[list(labels)] = np.arange(len(labels), dtype=np.uint8)
    x, y, z = case.label.shape
    whole = np.empty((z, y, x), np.uint8)
    start = 0
    for block in blocks(case.label):
        whole[start : start + len(block)] = table[block.astype(np.uint8)]
        start += len(block)
    return whole.transpose(2, 1, 0)


def _nearest(classes: Classes, grid: Shape) -> Classes:
    for axis, (size, new) in enumerate(zip(classes.shape, grid, strict=True)):
        if size != new:
            indices = np.minimum(((np.arange(new) + 0.5) * (size / new)).astype(np.intp), size - 1)
            classes = np.take(classes, indices, axis)
    return classes


def _to_model(array: npt.NDArray[Value], mapping: AxisMapping) -> npt.NDArray[Value]:
    """Turn (x, y, z) from file axes to model axes; the inverse of ``AxisMapping.view``."""
    unflipped = array[tuple(slice(None, None, -1) if flip else slice(None) for flip in mapping.flips)]
    return np.ascontiguousarray(unflipped.transpose(np.argsort(mapping.axes)))


def intensity_operations(dataset: Dataset, cases: Sequence[LabelledCase]) -> list[dict[str, Any]]:
    """Operations on intensities: CT, which has a fixed scale, is windowed to the labelled tissue, all else normalised.

    The window is from the 0.5th to the 99.5th percentile of labelled voxels in up to 20 cases.
    """
    if not dataset.channels[0].upper().startswith("CT"):
        return [{"op": "zscore"}]
    chosen = cases[:: max(1, len(cases) // 20)][:20]
    samples = []
    for case in chosen:
        values = _whole(case.image)[_classes(case, dataset.labels) > 0]
        samples.append(values[:: max(1, values.size // 10_000)])
    low, high = (float(edge) for edge in np.percentile(np.concatenate(samples), (0.5, 99.5)))
    return [{"op": "clip", "low": low, "high": high}, {"op": "scale", "low": low, "high": high}]


def loading_bytes(volume: NiftiVolume) -> int:
    """Bytes of ``load_case`` without its results: blocks as stored and scaled, and the volume before resampling."""
    voxels = prod(volume.shape)
    block = block_planes(volume) * volume.shape[0] * volume.shape[1]
    return block * (volume.dtype.itemsize + 2 * 4 + 8) + voxels * (4 + 1) + volume.reader_bytes
