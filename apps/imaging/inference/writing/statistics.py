"""Volume and intensity of each class, updated plane by plane while labels are written.

Percentiles are exact. The values of all classes wait on disk with their labels, and the bytes of each percentile are
found one after the other, the highest first, each in a pass over them.
"""

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from apps.imaging.models.model_folder import Label
from apps.imaging.volumes.volume import PlaneReader, Volume, scaled
from common.files import write_text
from common.memory.footprint import Price
from common.terminal import cell

PERCENTILES = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
"""By name, the share of a class's voxels of which the smallest value is taken that is not exceeded."""
COLUMNS = ("value", "name", "voxels", "volume_ml", "mean", "sd", "min", *PERCENTILES, "max")
SPOOL_VOXELS = 1 << 16
"""Voxels of the file of values that are looked at at a time."""


class Statistics:
    """Running count, mean and squared deviation of each label.

    Parameters
    ----------
    volume, reader
        The image on the labels' grid, and a reader of its own at the first plane.
    labels
        The classes; background, 0, is not reported.
    spool
        An empty file, in which the values wait.
    overlapping
        True if a label has a bit for each class.
    """

    def __init__(
        self,
        volume: Volume,
        reader: PlaneReader,
        labels: Sequence[Label],
        spool: IO[bytes],
        *,
        overlapping: bool = False,
    ) -> None:
        self._overlapping = overlapping
        self._volume, self._reader = volume, reader
        self._labels = [label for label in labels if label.value]
        size = 1 + max((label.value for label in self._labels), default=0)
        self._count, self._mean, self._squares = (np.zeros(size) for _ in range(3))
        self._least, self._most = np.full(size, np.inf, np.float32), np.full(size, -np.inf, np.float32)
        self._spool = spool
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
        np.minimum.at(self._least, labels, values)
        np.maximum.at(self._most, labels, values)
        entries = np.empty(len(labels), _ENTRY)
        entries["label"], entries["key"] = labels, _sortable(values)
        self._spool.write(entries.data)
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
        rows, percentiles = [], self._percentiles()
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
                    "min": round(float(self._least[label.value]), 4) if count else None,
                    **{
                        name: round(float(found[label.value]), 4) if count else None
                        for name, found in percentiles.items()
                    },
                    "max": round(float(self._most[label.value]), 4) if count else None,
                }
            )
        return rows

    def _percentiles(self) -> dict[str, npt.NDArray[np.float32]]:
        """By name, each percentile of each label; of a label without voxels any number."""
        size = len(self._count)
        ranks = {name: np.maximum(np.ceil(share * self._count), 1) for name, share in PERCENTILES.items()}
        found = {name: np.zeros(size, np.uint32) for name in PERCENTILES}
        for shift in (24, 16, 8, 0):
            counts = {name: np.zeros((size, 256), np.int64) for name in PERCENTILES}
            for entries in self._spooled():
                labels, keys = entries["label"], entries["key"]
                for name, prefix in found.items():
                    near = (keys >> (shift + 8) == prefix[labels]) if shift < 24 else np.ones(len(keys), bool)
                    place = labels[near].astype(np.int64) * 256 + ((keys[near] >> shift) & 255)
                    counts[name] += np.bincount(place, minlength=size * 256).reshape(size, 256)
            for name, count in counts.items():
                below = np.cumsum(count, axis=1)
                byte = np.minimum((below < ranks[name][:, None]).sum(axis=1), 255)
                before = np.take_along_axis(below - count, byte[:, None], 1)[:, 0]
                ranks[name] = ranks[name] - before
                found[name] = (found[name] << 8) | byte.astype(np.uint32)
        return {name: _values(keys) for name, keys in found.items()}

    def _spooled(self) -> Iterator[npt.NDArray[Any]]:
        """The labels and values of all voxels, again and again."""
        self._spool.seek(0)
        while entries := self._spool.read(SPOOL_VOXELS * _ENTRY.itemsize):
            yield np.frombuffer(entries, _ENTRY)


def save(stem: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write ``STEM.csv`` and ``STEM.json``; returns their names.

    Parameters
    ----------
    rows
        Of ``Statistics.rows``.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({**row, "name": cell(row["name"])} for row in rows)
    write_text(stem.with_suffix(".csv"), text.getvalue())
    write_text(stem.with_suffix(".json"), json.dumps({"classes": rows}, indent=1, ensure_ascii=False) + "\n")
    return [stem.with_suffix(suffix).name for suffix in (".csv", ".json")]


_ENTRY = np.dtype([("label", np.uint16), ("key", np.uint32)])
_SIGN = np.uint32(1 << 31)


def _sortable(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Whole numbers in the order of the values."""
    bits = (values + np.float32(0)).view(np.uint32)  # which makes -0 the same as 0
    keys: npt.NDArray[np.uint32] = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return keys


def _values(keys: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """The values of ``_sortable``."""
    return np.where(keys & _SIGN, keys & ~_SIGN, ~keys).astype(np.uint32).view(np.float32)


@contextmanager
def open_statistics(
    volume: Volume, labels: Sequence[Label], scratch: Path, *, overlapping: bool = False
) -> Iterator[Statistics]:
    """Statistics that read the image a second time, plane by plane with the labels.

    Parameters
    ----------
    scratch
        Directory on the disk where values wait.
    """
    with volume.open() as reader, tempfile.TemporaryFile(dir=scratch) as spool:
        yield Statistics(volume, reader, labels, spool, overlapping=overlapping)


def statistics_bytes(volume: Volume, classes: int) -> Price:
    """Bytes of a plane as stored; while it is read, or its values are summed in float32 and in double precision, or
    percentiles are looked for.

    Parameters
    ----------
    classes
        The largest label, and background.
    """
    x, y, _ = volume.shape
    summing = x * y * (2 * 4 + 6 * 8 + 2 + 3 * _ENTRY.itemsize)
    searching = (len(PERCENTILES) + 3) * 256 * 8 * classes + SPOOL_VOXELS * 64
    return Price(x * y * volume.dtype.itemsize, max(volume.reader_bytes, summing, searching))
