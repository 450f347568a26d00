"""Labels on the file's grid, where interpolation is left out between voxels of one class.

A mean with weights of 0 to 1 keeps the order of two logits that all of its values have. So between eight voxels of the
network's grid that have the same largest logit, every voxel of the file has it too. Only what lies between voxels of
several classes is interpolated: with a trained network, the few per cent at the borders of structures.
"""

from collections.abc import Iterator
from math import prod

import numpy as np
import numpy.typing as npt

from apps.imaging.inference.labeling.decision import UNDECIDED, Classes, LogitsToLabels
from apps.imaging.inference.labeling.planes import Array, Labels
from apps.imaging.inference.labeling.resampling import LEAST_CHANNELS, InverseResampler, PlacedBlock
from apps.imaging.volumes.geometry import LinearInterpolation
from apps.imaging.volumes.volume import Shape
from common.tiling.blend import FLOAT, Block

MOST_UNDECIDED = 0.5
"""Share of undecided cells from which on a whole block is interpolated: single voxels take twice as long."""
POINTS_BYTES = 1 << 20
"""Values of undecided voxels are interpolated in parts of about this many bytes."""

Indices = npt.NDArray[np.intp]


def labels_of_block(
    block: Block, resampler: InverseResampler, to_labels: LogitsToLabels
) -> Iterator[tuple[Shape, Labels, bool]]:
    """Interpolate a block's values to the file's grid, and make labels of them.

    Parameters
    ----------
    block
        Finished values, (channels, x, y, z).

    Yields
    ------
    low, labels, last
        First voxel of a piece, its labels (x, y, k), and if it is the last one, as in ``Block``.
    """
    for slab in resampler.slabs(block):
        yield from _labels_of_slab(slab, resampler.linear, to_labels)
        del slab  # before the next one is made


def _labels_of_slab(
    placed: PlacedBlock, linear: bool, to_labels: LogitsToLabels
) -> Iterator[tuple[Shape, Labels, bool]]:
    cells = None
    if len(placed.values) >= LEAST_CHANNELS and linear and to_labels.largest and _is_finer(placed):
        cells = cell_classes(to_labels.certain_classes(placed.values))
    if cells is None or (cells == UNDECIDED).mean() > MOST_UNDECIDED:
        del cells
        for piece in placed.pieces():
            yield piece.low, to_labels(piece.values), piece.last
            del piece  # before the next one is made
        return
    x, y, z = placed.low
    planes = placed.shape[2]
    for number in range(planes):
        labels = _plane(placed, number, cells, to_labels)[..., None]
        yield (x, y, z + number), labels, placed.last and number + 1 == planes


def _is_finer(placed: PlacedBlock) -> bool:
    """True if the part on the file's grid has at least twice as many voxels as the block."""
    return prod(placed.shape) >= 2 * prod(placed.values.shape[1:])


def cell_classes(classes: Classes) -> Classes:
    """Class of each cell between neighbouring voxels, if all of them have it, else ``UNDECIDED``.

    Parameters
    ----------
    classes
        By voxel, (x, y, z).

    Returns
    -------
    ndarray
        One less along each axis, but one along an axis with one voxel.

    Examples
    --------
    >>> cell_classes(np.array([4, 4, 5, 5], np.uint16).reshape(1, 4, 1)).ravel().tolist()
    [4, 65535, 5]
    """
    low = high = classes
    for axis in range(3):
        if classes.shape[axis] > 1:
            before = (slice(None),) * axis + (slice(None, -1),)
            after = (slice(None),) * axis + (slice(1, None),)
            low, high = np.minimum(low[before], low[after]), np.maximum(high[before], high[after])
    return np.where(low == high, low, np.uint16(UNDECIDED))


def _plane(placed: PlacedBlock, number: int, cells: Classes, to_labels: LogitsToLabels) -> Labels:
    """Labels (x, y) of a plane of the file's grid."""
    along_x, along_y, along_z = placed.axes
    across = cells[:, :, min(int(along_z.lower[number]), cells.shape[2] - 1)]
    across = across[np.minimum(along_x.lower, cells.shape[0] - 1)]
    classes = across[:, np.minimum(along_y.lower, cells.shape[1] - 1)]
    undecided = classes == UNDECIDED
    needed = np.flatnonzero(undecided.any(axis=1))
    if not len(needed):
        return to_labels.of_classes(classes)
    classes[undecided] = 0
    labels = to_labels.of_classes(classes)
    rows, columns = np.nonzero(undecided[needed])
    del classes, undecided
    values = along_z.part(number, number + 1, 0)(placed.values, 3)[..., 0]
    values = _rows(along_x, needed)(values, 1)
    step = max(1, POINTS_BYTES // (FLOAT * len(values)))
    for start in range(0, len(rows), step):
        row, column = rows[start : start + step], columns[start : start + step]
        points = _points(values, row, column, along_y)
        labels[needed[row], column] = to_labels(points[:, :, None, None])[:, 0, 0]
    return labels


def _rows(axis: LinearInterpolation, chosen: Indices) -> LinearInterpolation:
    """The interpolation to some of its outputs."""
    return LinearInterpolation(axis.lower[chosen], axis.upper[chosen], axis.weight[chosen])


def _points(values: Array, rows: Indices, columns: Indices, along_y: LinearInterpolation) -> Array:
    """Values (channels, n) of single voxels, by the steps of ``LinearInterpolation``."""
    size = values.shape[2]
    flat, first = values.reshape(len(values), -1), rows * size
    result: Array = flat.take(first + along_y.lower[columns], 1)
    further = flat.take(first + along_y.upper[columns], 1)
    further -= result
    further *= along_y.weight[columns]
    result += further
    return result
