"""From finished values to labels: the head and the decision."""

from collections.abc import Iterator, Sequence
from copy import copy
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from apps.imaging.inference.labeling.planes import Array, Labels, label_dtype, row_depth
from apps.imaging.volumes.geometry import LinearInterpolation
from apps.imaging.volumes.volume import Shape
from common.memory.footprint import Price
from common.tiling.blend import FLOAT
from common.tiling.grid import TileGrid

Activation = Literal["softmax", "sigmoid"]
Classes = npt.NDArray[np.uint16]

UNDECIDED = 65_535
"""In place of a class where there may be several."""

LABEL_BLOCK = 2 << 20
"""Bytes of logits that are compared at a time."""


class LogitsToLabels:
    """Makes labels of finished values: applies the 1x1x1 head if there is one, then decides.

    Parameters
    ----------
    values
        Label values by class.
    head
        Weight (classes, channels) and bias (classes,), if the values are features.
    kept
        Label values that are written. All classes compete; a voxel of one that is not kept becomes background.
    decision
        As in ``Inference``: the class of the largest logit, the last region that is found, or a bit for each class.
    order
        Regions in the order in which they write; ascending without one.
    threshold
        Logit above which a region or class is found.
    inclusive
        True if the threshold itself is found too, as in MONAI.
    """

    def __init__(
        self,
        values: Sequence[int],
        head: tuple[Array, Array] | None = None,
        kept: Sequence[int] | None = None,
        *,
        decision: Literal["largest", "regions", "bits"] = "largest",
        order: Sequence[int] = (),
        threshold: float = 0.0,
        inclusive: bool = False,
    ) -> None:
        self.dtype, self.classes = label_dtype(values), len(values)
        self._values = np.asarray([value if kept is None or value in kept else 0 for value in values], self.dtype)
        self._identical = bool((self._values == np.arange(len(values))).all())
        self._head, self._decision, self._order = head, decision, order or range(len(values))
        self._threshold, self._found = np.float32(threshold), np.greater_equal if inclusive else np.greater

    def __call__(self, values: Array) -> npt.NDArray[np.unsignedinteger]:
        """Labels (x, y, k) of values (channels, x, y, k); of equal logits the first class wins, as in ``argmax``."""
        _, x, y, planes = values.shape
        rows = label_rows(len(self._values), values.shape[0], y, planes)
        labels = np.empty((x, y, planes), self.dtype)
        for start in range(0, x, rows):
            labels[start : start + rows] = self._of_rows(values[:, start : start + rows])
        return labels

    def _of_rows(self, values: Array) -> Labels:
        logits = self._logits(values)
        if self._decision == "largest":
            index = _largest(logits, self.dtype)
            return index if self._identical else self._values[index]
        labels, found = np.zeros(logits.shape[1:], self.dtype), np.empty(logits.shape[1:], bool)
        for channel in self._order:
            self._found(logits[channel], self._threshold, out=found)
            if self._decision == "bits":
                labels |= found * self._values[channel]
            else:
                np.copyto(labels, self._values[channel], where=found)
        return labels

    @property
    def largest(self) -> bool:
        """True if the class of the largest value is a voxel's label."""
        return self._decision == "largest"

    def of_classes(self, classes: Classes) -> Labels:
        """Labels of numbers of classes."""
        return self._values[classes]

    def certain_classes(self, values: Array) -> Classes:
        """Class of each voxel of values (channels, x, y, z), or ``UNDECIDED`` where rounding may change it.

        The largest logit has to be ahead of all others by more than what rounding does to this comparison and to that
        of logits of interpolated values. With unit roundoff u, logits of n channels differ from exact ones by at most
        (n + 1) u S, and three interpolations add 9 u S, where S is the sum of absolute weights times the largest value
        (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). Twice that is asked for.
        """
        channels, x, y, planes = values.shape
        largest, roundings = float(max(values.max(initial=0), -values.min(initial=0))), 22
        if self._head is not None:
            largest = largest * float(np.abs(self._head[0]).sum(axis=1).max()) + float(np.abs(self._head[1]).max())
            roundings += 4 * channels
        margin = np.float32(roundings * np.finfo(np.float32).eps * largest)
        rows = label_rows(len(self._values), channels, y, planes)
        found = np.empty((x, y, planes), np.uint16)
        for start in range(0, x, rows):
            found[start : start + rows] = _certain(self._logits(values[:, start : start + rows]), margin)
        return found

    def _logits(self, values: Array) -> Array:
        if self._head is None:
            return values
        logits: Array = self._head[0] @ values.reshape(values.shape[0], -1)
        logits += self._head[1][:, None]
        return logits.reshape(len(logits), *values.shape[1:])  # which may be empty, if no voxel of the file is there

    def probabilities(self, values: Array, kind: Activation) -> Array:
        """Probabilities (classes, x, y, k) in float32 of values (channels, x, y, k), by the activation ``kind``."""
        result = np.empty((len(self._values), *values.shape[1:]), np.float32)
        for start, part in self.probability_rows(values, kind):
            result[:, start : start + part.shape[1]] = part
        return result

    def probability_rows(self, values: Array, kind: Activation) -> Iterator[tuple[int, Array]]:
        """The same in parts along x: each part's first row, and its probabilities."""
        _, x, y, planes = values.shape
        rows = label_rows(len(self._values), values.shape[0], y, planes)
        for start in range(0, x, rows):
            part = np.array(self._logits(values[:, start : start + rows]), np.float32)
            if kind == "softmax":
                part -= part.max(axis=0)
                np.exp(part, out=part)
                part /= part.sum(axis=0)
            else:
                np.negative(part, out=part)
                np.exp(part, out=part)
                part += 1
                np.reciprocal(part, out=part)
            yield start, part

    def of_probabilities(self) -> "LogitsToLabels":
        """The same for ``probabilities``, whose threshold is the logit's sigmoid."""
        other = copy(self)
        other._head = None
        other._threshold = np.float32(1 / (1 + np.exp(-np.float64(self._threshold))))
        return other


def label_rows(classes: int, channels: int, y: int, planes: int) -> int:
    """Rows along x whose logits are compared at a time."""
    return max(1, LABEL_BLOCK // max(1, max(classes, channels) * y * planes * FLOAT))


def _largest(logits: Array, dtype: np.dtype[np.unsignedinteger]) -> npt.NDArray[np.unsignedinteger]:
    """``logits.argmax(axis=0)`` in one or two bytes a voxel instead of eight."""
    best, index = logits[0].copy(), np.zeros(logits.shape[1:], dtype)
    larger = np.empty(logits.shape[1:], bool)
    for number, others in enumerate(logits[1:], start=1):
        np.greater(others, best, out=larger)
        np.copyto(index, dtype.type(number), where=larger)
        np.maximum(best, others, out=best)
    return index


def _certain(logits: Array, margin: np.float32) -> Classes:
    """The class of the largest logit, or ``UNDECIDED`` where the second one is within the margin."""
    best, index = logits[0].copy(), np.zeros(logits.shape[1:], np.uint16)
    second, smaller = np.full_like(best, -np.inf), np.empty_like(best)
    for number, others in enumerate(logits[1:], start=1):
        np.copyto(index, np.uint16(number), where=others > best)
        np.minimum(others, best, out=smaller)
        np.maximum(second, smaller, out=second)
        np.maximum(best, others, out=best)
    best -= second
    index[~(best > margin)] = UNDECIDED
    return index


def label_bytes(
    grid: TileGrid,
    shape: Shape,
    classes: int,
    channels: int,
    dtype: np.dtype[np.unsignedinteger],
    along_z: LinearInterpolation | None = None,
    *,
    copied: bool,
) -> Price:
    """Bytes of the planes that are gathered; of one block's labels, and of the rows that are compared.

    Parameters
    ----------
    grid, shape
        The network's grid, and the shape of the file's.
    channels
        Channels of the blend's values.
    along_z
        The interpolation between the grids, as for ``InverseResampler``.
    copied
        True if the values are copied first: to logits by the head, or to probabilities.
    """
    depth = row_depth(grid, shape, along_z)
    plane, block = shape[0] * shape[1], [min(tile, size) for tile, size in zip(grid.tile, grid.shape, strict=True)]
    rows = min(block[0], label_rows(classes, channels, block[1], block[2]))
    voxel = (channels + classes if copied else 0) * FLOAT + FLOAT + 2 + dtype.itemsize
    return Price(plane * depth * dtype.itemsize, prod(block) * dtype.itemsize + rows * block[1] * block[2] * voxel)
