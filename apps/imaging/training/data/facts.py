"""Facts of a data set that decide how a network is trained on it, from one pass over each case in blocks of planes.

Class sizes, and the intensities of labelled voxels in each channel: their moments and extremes exactly, their
percentiles from an even sample. ``imaging fingerprint`` writes them; the window of CT images follows from them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.training.data.case_files import DESCRIPTION
from apps.imaging.training.data.dataset import Dataset, LabelledCase, check_label_values
from apps.imaging.volumes.volume import block_planes, blocks
from common.errors import BadInput

SAMPLE = 10_000
"""Labelled voxels of a case whose intensities are kept, at most; their percentiles stand for all."""
MOST_SAMPLES = 500_000
"""The same of all cases together."""
PERCENTILES = (0.5, 50.0, 99.5)
"""Of the labelled voxels, as nnU-Net's fingerprint has them."""
WINDOW_CASES = 20
"""Cases from which a training finds the window of CT images."""


@dataclass(slots=True)
class Intensities:
    """Values of one channel at labelled voxels: moments as sums about their mean, extremes, an even sample."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared differences from the mean."""
    least: float = float("inf")
    largest: float = float("-inf")
    sample: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    _step: int = 1
    """Every so many values are in the sample."""

    def add(self, values: npt.NDArray[np.float32], most: int = SAMPLE) -> None:
        """Add values (n,), in an order that depends on the case alone.

        Parameters
        ----------
        most
            Size of the sample; until the end it may be up to twice as large.
        """
        if not values.size:
            return
        kept = values[-self.count % self._step :: self._step]
        mean = float(values.mean(dtype=np.float64))
        self._join(values.size, mean, float(np.square(values - np.float64(mean)).sum()))
        self.least, self.largest = min(self.least, float(values.min())), max(self.largest, float(values.max()))
        self.sample = np.concatenate([self.sample, kept])
        while self.sample.size > 2 * most:
            self.sample, self._step = self.sample[::2].copy(), 2 * self._step

    def closed(self, most: int = SAMPLE) -> "Intensities":
        """Make the sample no larger than it may be; the values are complete."""
        if self.sample.size > most:
            self.sample = self.sample[np.linspace(0, self.sample.size - 1, most).astype(np.intp)]
        return self

    def merge(self, other: "Intensities") -> None:
        """Add those of another case, without its sample (Chan, Golub, LeVeque, 1983)."""
        if other.count:
            self._join(other.count, other.mean, other.squares)
            self.least, self.largest = min(self.least, other.least), max(self.largest, other.largest)

    def _join(self, count: int, mean: float, squares: float) -> None:
        whole, apart = self.count + count, mean - self.mean
        self.squares += squares + apart**2 * self.count * count / whole
        self.mean += apart * count / whole
        self.count = whole

    @property
    def deviation(self) -> float:
        """Standard deviation of the values; 0 if there are none."""
        return float((self.squares / self.count) ** 0.5) if self.count else 0.0


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """Facts of one case."""

    voxels: Mapping[int, int]
    """Voxels of each label value in its file."""
    channels: tuple[Intensities, ...]
    constant: tuple[int, ...]
    """Channels that have one value throughout."""


def read_facts(case: LabelledCase, dataset: Dataset, most: int = SAMPLE) -> CaseFacts:
    """Read a case once, its label and its channels side by side.

    Parameters
    ----------
    most
        Size of the sample of each channel.

    Raises
    ------
    BadInput
        Truncated data, or label values that the data set does not list.
    """
    voxels: Counter[int] = Counter()
    channels = [Intensities() for _ in case.images]
    ranges = np.array([[np.inf, -np.inf]] * len(case.images))
    planes = common_planes(case)
    readers = [blocks(volume, planes) for volume in (case.label, *case.images)]
    for label, *images in zip(*readers, strict=True):
        counted = dict(zip(*(found.tolist() for found in np.unique(label, return_counts=True)), strict=True))
        check_label_values(case, np.array(list(counted)))
        check_listed(case, map(int, counted), dataset)
        voxels.update({int(value): count for value, count in counted.items()})
        labelled = (label > 0) & (label != (-1 if dataset.ignored is None else dataset.ignored))
        for one, image, extremes in zip(channels, images, ranges, strict=True):
            np.nan_to_num(image, copy=False, nan=0, posinf=0, neginf=0)
            extremes[:] = min(extremes[0], image.min()), max(extremes[1], image.max())
            one.add(image[labelled], most)
    same = tuple(number for number, (least, largest) in enumerate(ranges) if least == largest)
    return CaseFacts(dict(sorted(voxels.items())), tuple(one.closed(most) for one in channels), same)


def check_listed(case: LabelledCase, values: Iterable[int], dataset: Dataset) -> None:
    """Refuse label values that the data set does not list.

    Raises
    ------
    BadInput
        With the case and the values.
    """
    if unknown := sorted(set(values) - {*dataset.labels, dataset.ignored}):
        found = ", ".join(map(str, unknown))
        raise BadInput(f"case {case.name}: label values {found} are not listed in {DESCRIPTION}", public="label values")


def common_planes(case: LabelledCase) -> int:
    """Planes of the blocks in which a case is read."""
    return min(map(block_planes, (case.label, *case.images)))


def reading_bytes(case: LabelledCase) -> int:
    """Bytes of ``read_facts`` beside samples: a block of each file as stored and in float32, and of masks and sorting.

    ``np.unique`` sorts a copy of the label's block, and what is labelled may be all of an image's.
    """
    x, y, _ = case.label.shape
    block, volumes = common_planes(case) * x * y, (case.label, *case.images)
    stored = sum(volume.dtype.itemsize + 4 for volume in volumes)
    work = 4 + 4 + 8 + 3  # a sorted copy or labelled values, their float64 differences, masks
    return block * (stored + work + 8) + sum(volume.reader_bytes for volume in volumes)


def sample_size(cases: int, channels: int) -> int:
    """Labelled voxels to keep of each case and channel."""
    return max(1, min(SAMPLE, MOST_SAMPLES // (cases * channels)))


def sample_bytes(cases: int, channels: int) -> int:
    """Bytes of the samples of all cases, of one that is being read, and of a channel's for its percentiles."""
    most = sample_size(cases, channels)
    return 4 * most * (cases * channels + 4 * channels + 2 * cases)


def percentiles(samples: Sequence[npt.NDArray[np.float32]], which: Sequence[float]) -> list[float]:
    """Percentiles of the samples of several cases together; none if there are no values."""
    pooled = np.concatenate([*samples, np.empty(0, np.float32)])
    return [float(edge) for edge in np.percentile(pooled, which)] if pooled.size else []


def intensity_operations(
    dataset: Dataset, cases: Sequence[LabelledCase], facts: Sequence[CaseFacts] | None = None
) -> list[list[dict[str, Any]]]:
    """Operations on each channel's intensities, by its name, as nnU-Net has it.

    CT, which has a fixed scale, is windowed to the labelled tissue: from the 0.5th to the 99.5th percentile of its
    voxels. ``noNorm`` is left as it is, ``rescale_to_0_1`` set between its extremes; everything else is normalised to
    mean 0 and standard deviation 1.

    Parameters
    ----------
    cases
        Of which up to ``WINDOW_CASES`` are read if a channel is CT and there are no ``facts``.
    facts
        Of all cases, if they are known.

    Raises
    ------
    BadInput
        CT images without a labelled voxel.
    """
    found: list[list[dict[str, Any]]] = []
    for channel, name in enumerate(dataset.channels):
        if name.upper().startswith("CT"):
            if facts is None:
                some = cases[:: max(1, len(cases) // WINDOW_CASES)][:WINDOW_CASES]
                facts = [read_facts(case, dataset) for case in some]
            edges = percentiles([one.channels[channel].sample for one in facts], PERCENTILES[::2])
            if not edges or edges[0] >= edges[1]:
                raise BadInput(f"channel {name}: no labelled voxels, or of one value, from which its window follows")
            low, high = edges
            found.append([{"op": "clip", "low": low, "high": high}, {"op": "scale", "low": low, "high": high}])
        elif name.lower() == "nonorm":
            found.append([])
        elif name.lower() == "rescale_to_0_1":
            found.append([{"op": "range", "low": 0.0, "high": 1.0}])
        else:
            found.append([{"op": "zscore"}])
    return found
