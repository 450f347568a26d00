"""Volume and intensity of each class, updated plane by plane while labels are written."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.models.model_folder import Label
from apps.imaging.volumes.volume import PlaneReader, Volume, scaled
from common.files import write_text
from common.memory.footprint import Price
from common.terminal import cell

COLUMNS = ("value", "name", "voxels", "volume_ml", "mean", "sd")


class Statistics:
    """Running count, mean and squared deviation of each label.

    Parameters
    ----------
    volume, reader
        The image on the labels' grid, and a reader of its own at the first plane.
    labels
        The classes; background, 0, is not reported.
    overlapping
        True if a label has a bit for each class.
    """

    def __init__(
        self, volume: Volume, reader: PlaneReader, labels: Sequence[Label], *, overlapping: bool = False
    ) -> None:
        self._overlapping = overlapping
        self._volume, self._reader = volume, reader
        self._labels = [label for label in labels if label.value]
        size = 1 + max((label.value for label in self._labels), default=0)
        self._count, self._mean, self._squares = (np.zeros(size) for _ in range(3))
        x, y, _ = volume.shape
        self._plane = np.empty((1, y, x), volume.dtype)

    def write(self, slab: npt.NDArray[Any]) -> None:
        """Add finished planes, (x, y, k)."""
        for k in range(slab.shape[2]):
            self._reader.read(self._plane)
            values = np.nan_to_num(scaled(self._volume, self._plane[0]), posinf=0.0, neginf=0.0).reshape(-1)
            labels = np.ascontiguousarray(slab[..., k].T).reshape(-1)
            if not self._overlapping:
                self._add(labels, values)
                continue
            for label in self._labels:
                self._add(labels & labels.dtype.type(label.value), values)

    def _add(self, labels: npt.NDArray[Any], values: npt.NDArray[np.float32]) -> None:
        """Chan's update, as in ``intensity.moments``, for all labels of a plane at once."""
        inside = labels != 0
        labels, values = labels[inside], values[inside]
        size = len(self._count)
        count = np.bincount(labels, minlength=size)
        mean = np.bincount(labels, weights=values, minlength=size) / np.maximum(count, 1)
        squares = np.bincount(labels, weights=(values - mean[labels]) ** 2, minlength=size)
        total = self._count + count
        share = np.divide(count, total, out=np.zeros(size), where=total > 0)
        step = mean - self._mean
        self._squares += squares + step**2 * self._count * share
        self._mean += step * share
        self._count = total

    def rows(self) -> list[dict[str, Any]]:
        """One row for each class; mean and standard deviation (of the population) are ``None`` without a voxel."""
        millilitres = abs(float(np.linalg.det(self._volume.affine[:3, :3]))) / 1000
        rows = []
        for label in self._labels:
            count = int(self._count[label.value])
            deviation = (self._squares[label.value] / count) ** 0.5 if count else None
            rows.append(
                {
                    "value": label.value,
                    "name": label.name,
                    "voxels": count,
                    "volume_ml": round(count * millilitres, 4),
                    "mean": round(float(self._mean[label.value]), 4) if count else None,
                    "sd": round(float(deviation), 4) if deviation is not None else None,
                }
            )
        return rows

    def save(self, stem: Path) -> list[str]:
        """Write ``STEM.csv`` and ``STEM.json``; returns their names."""
        rows, text = self.rows(), io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows({**row, "name": cell(row["name"])} for row in rows)
        write_text(stem.with_suffix(".csv"), text.getvalue())
        write_text(stem.with_suffix(".json"), json.dumps({"classes": rows}, indent=1, ensure_ascii=False) + "\n")
        return [stem.with_suffix(suffix).name for suffix in (".csv", ".json")]


@contextmanager
def open_statistics(volume: Volume, labels: Sequence[Label], *, overlapping: bool = False) -> Iterator[Statistics]:
    """Statistics that read the image a second time, plane by plane with the labels."""
    with volume.open() as reader:
        yield Statistics(volume, reader, labels, overlapping=overlapping)


def statistics_bytes(volume: Volume) -> Price:
    """Bytes of a plane as stored; while it is read, or its values are summed in float32 and in double precision."""
    x, y, _ = volume.shape
    return Price(x * y * volume.dtype.itemsize, max(volume.reader_bytes, x * y * (2 * 4 + 6 * 8 + 2)))
