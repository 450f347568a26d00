"""``imaging evaluate``: compare segmentations with references, case by case and plane by plane.

Overlap and volumes are counts. Surface distances come from a k-d tree of the surfaces' points, whose memory grows with
the surface, not with the volume. A surface voxel has a face neighbour of another label; distances are between voxel
centres in millimetres. HD95 is the larger of the two directed 95th percentiles, and surface Dice the share of both
surfaces that lies within the tolerance of the other, as MONAI defines them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.stored import FileVolume
from apps.imaging.volumes.volume import spacing
from common.errors import BadInput
from common.terminal import cell

TOLERANCE = 1.0
"""Millimetres within which two surfaces agree (surface Dice)."""
COORDINATE = np.int16
"""Type of a voxel index."""
QUERY = 1 << 16
"""Points whose nearest neighbours are searched at a time."""

LARGEST_LABEL = 2**53
"""Integers up to this are exact in double precision."""

Points = npt.NDArray[np.int16]
LabelPlane = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prediction and its reference, with checked headers."""

    case: str
    """``case-0001``, because a file's name may identify a patient."""
    prediction: "Labels"
    reference: "Labels"


@dataclass(frozen=True, slots=True)
class Labels:
    """A label file, or one class of it."""

    volume: FileVolume
    value: int | None = None
    """Label under which one class is compared; ``None``: all, as they are."""
    stored: int | None = None
    """The class's label in the file; ``None``: all but zero, as in a file of one class."""


@dataclass(slots=True)
class Scan:
    """Counts of one pass over a pair, by label value."""

    overlap: dict[int, int]
    """Voxels with this label in both."""
    voxels: tuple[dict[int, int], dict[int, int]]
    """Voxels of prediction and reference."""
    surface: tuple[dict[int, int], dict[int, int]]
    """Surface voxels of prediction and reference."""

    @property
    def values(self) -> list[int]:
        """Label values that occur, without background."""
        return sorted({*self.voxels[0], *self.voxels[1]} - {0})


def planes(labels: Labels) -> Iterator[LabelPlane]:
    """Label planes (y, x), one at a time.

    Raises
    ------
    BadInput
        If a value is not a whole number, or too large to be exact.
    """
    volume, value = labels.volume, labels.value
    x, y, z = volume.shape
    buffer = np.empty((1, y, x), volume.dtype)
    with volume.open() as reader:
        for _ in range(z):
            reader.read(buffer)
            plane = _labels(volume, buffer[0])
            if value is not None:
                found = plane != 0 if labels.stored is None else plane == labels.stored
                plane = found * np.int64(value)
            yield plane


def _labels(volume: FileVolume, stored: npt.NDArray[Any]) -> LabelPlane:
    """Labels of a plane, exactly: integers as they are, all else in double precision."""
    if stored.dtype.kind in "iu" and volume.slope == 1 and volume.intercept == 0:
        if stored.dtype == np.uint64 and stored.max() > LARGEST_LABEL:
            raise BadInput(f"{volume.path}: labels beyond {LARGEST_LABEL}", public="label values")
        return stored.astype(np.int64)
    values = stored.astype(np.float64)
    values *= volume.slope
    values += volume.intercept
    if not np.array_equal(values, np.rint(values)) or max(values.max(), -values.min()) > LARGEST_LABEL:
        message = "labels must be whole numbers; it has fractions, NaN or infinite values"
        raise BadInput(f"{volume.path}: {message}", public="label values")
    return values.astype(np.int64)


def edges(labels: Iterator[LabelPlane]) -> Iterator[tuple[LabelPlane, npt.NDArray[np.bool_]]]:
    """Each plane with a mask of its surface voxels: those with a face neighbour of another label, or at the border."""
    before: LabelPlane | None = None
    plane = next(labels, None)
    while plane is not None:
        after = next(labels, None)
        edge = np.ones(plane.shape, bool)
        inner = plane[1:-1, 1:-1]
        edge[1:-1, 1:-1] = (
            (inner != plane[:-2, 1:-1])
            | (inner != plane[2:, 1:-1])
            | (inner != plane[1:-1, :-2])
            | (inner != plane[1:-1, 2:])
        )
        for neighbour in (before, after):
            edge |= True if neighbour is None else plane != neighbour
        yield plane, edge & (plane != 0)
        before, plane = plane, after


def scan(pair: Pair) -> Scan:
    """Count overlaps, voxels and surface voxels in one pass over both files."""
    counts = Scan({}, ({}, {}), ({}, {}))
    for sides in zip(edges(planes(pair.prediction)), edges(planes(pair.reference)), strict=True):
        for side, (plane, edge) in enumerate(sides):
            _count(counts.voxels[side], plane)
            _count(counts.surface[side], plane[edge])
        one, two = sides[0][0], sides[1][0]
        _count(counts.overlap, one[one == two])
    return counts


def _count(into: dict[int, int], labels: LabelPlane) -> None:
    for value, number in zip(*np.unique(labels, return_counts=True), strict=True):
        into[int(value)] = into.get(int(value), 0) + int(number)


def surfaces(labels: Labels, counts: Mapping[int, int]) -> dict[int, Points]:
    """Voxel indices of each label's surface.

    Parameters
    ----------
    counts
        Surface voxels by label value, from ``scan``.

    Returns
    -------
    dict
        Arrays (n, 3) by label value, without background.
    """
    points = {value: np.empty((number, 3), COORDINATE) for value, number in counts.items() if value != 0}
    filled = dict.fromkeys(points, 0)
    for z, (plane, edge) in enumerate(edges(planes(labels))):
        y, x = np.nonzero(edge)
        values = plane[y, x]
        for value in np.unique(values):
            chosen = values == value
            start, stop = filled[value], filled[value] + int(chosen.sum())
            points[value][start:stop] = np.stack([x[chosen], y[chosen], np.full(stop - start, z)], axis=1)
            filled[value] = stop
    return points


def distances(of: Points, to: Points, edge: Sequence[float]) -> npt.NDArray[np.float64]:
    """Distance of each point of one surface to the nearest point of the other.

    Parameters
    ----------
    of, to
        Voxel indices, (n, 3) and (m, 3).
    edge
        Voxel edges in millimetres.

    Returns
    -------
    array (n,)
        Millimetres.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(to * np.asarray(edge), balanced_tree=False, compact_nodes=False)
    result = np.empty(len(of))
    for start in range(0, len(of), QUERY):
        points = of[start : start + QUERY] * np.asarray(edge)
        result[start : start + QUERY] = tree.query(points)[0]
    return result


def compare(pair: Pair, counts: Scan, tolerance: float = TOLERANCE) -> dict[int, dict[str, float | None]]:
    """All measures of a pair by label value; distances are ``None`` if one of the two has no such label.

    Parameters
    ----------
    tolerance
        Millimetres within which two surfaces agree.
    """
    affine = pair.reference.volume.affine
    edge = spacing(affine)
    millilitres = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    sides = [
        surfaces(labels, surface)
        for labels, surface in zip((pair.prediction, pair.reference), counts.surface, strict=True)
    ]
    results: dict[int, dict[str, float | None]] = {}
    for value in counts.values:
        one, two = (voxels.get(value, 0) for voxels in counts.voxels)
        row: dict[str, float | None] = {
            "dice": 2 * counts.overlap.get(value, 0) / (one + two),
            "volume_ml": one * millilitres,
            "reference_ml": two * millilitres,
            "volume_error": (one - two) / two if two else None,
            "hd95_mm": None,
            "surface_dice": 0.0,
        }
        if one and two:
            row |= _surface_measures(sides[0].pop(value), sides[1].pop(value), edge, tolerance)
        results[value] = row
    return results


def _surface_measures(one: Points, two: Points, edge: Sequence[float], tolerance: float) -> dict[str, float | None]:
    forth, back = distances(one, two, edge), distances(two, one, edge)
    near = int((forth <= tolerance).sum()) + int((back <= tolerance).sum())
    return {
        "hd95_mm": float(max(np.percentile(forth, 95), np.percentile(back, 95))),
        "surface_dice": near / (len(forth) + len(back)),
    }


def evaluate(
    pairs: Sequence[Pair],
    scans: Sequence[Scan],
    tick: Callable[[int], Any] = lambda count: None,
    *,
    tolerance: float = TOLERANCE,
    names: Mapping[int, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Measure all cases.

    Parameters
    ----------
    tick
        Called with 1 after each pair.
    tolerance
        Millimetres within which two surfaces agree.
    names
        Of the classes, by label.

    Returns
    -------
    dict
        The record's ``results`` (``data/schemas/run.schema.json``): ``per_class``, means over the cases that have the
        class, and ``per_case``.
    """
    measured: dict[str, dict[int, dict[str, Any]]] = {}
    for pair, counts in zip(pairs, scans, strict=True):
        measured.setdefault(pair.case, {}).update(compare(pair, counts, tolerance))
        tick(1)
    cases = [
        {"case": case, "dice": _average([row["dice"] for row in rows.values()]), "classes": rows}
        for case, rows in measured.items()
    ]
    values = sorted({value for rows in measured.values() for value in rows})
    per_class: dict[str, dict[str, Any]] = {}
    for value in values:
        rows = [found[value] for found in measured.values() if value in found]
        named = {"name": names[value]} if value in names else {}
        per_class[str(value)] = {**named, **_mean(rows), **_counted(rows)}
    return {
        "cases": len(cases),
        "mean_dice": _average([row["dice"] for row in per_class.values()]),
        "tolerance_mm": tolerance,
        "missed": sum(row["missed"] for row in per_class.values()),
        "per_class": per_class,
        "per_case": [
            {**case, "classes": {str(value): row for value, row in measured[str(case["case"])].items()}}
            for case in cases
        ],
    }


def _average(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _counted(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Cases whose reference has a class, those of them where it was not found at all, and those where it was found
    without being there."""
    referenced = [row for row in rows if row["reference_ml"]]
    return {
        "references": len(referenced),
        "missed": sum(not row["volume_ml"] for row in referenced),
        "false_alarms": len(rows) - len(referenced),
    }


def _mean(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    names = ("dice", "hd95_mm", "surface_dice", "volume_error")
    return {name: _average([row[name] for row in rows]) for name in names}


def table(results: Mapping[str, Any]) -> str:
    """The means of each class as a table for a terminal."""
    rows = results["per_class"].items()
    width = max([5, *(len(cell(row.get("name", value))) for value, row in rows)])
    lines = [f"{'label':>{width}} {'Dice':>7} {'HD95 mm':>8} {'surface':>8} {'volume':>8} {'missed':>8}"]
    for value, row in rows:
        cells = [
            f"{row['dice']:7.4f}",
            f"{row['hd95_mm']:8.2f}" if row["hd95_mm"] is not None else f"{'-':>8}",
            f"{row['surface_dice']:8.4f}",
            f"{row['volume_error']:+8.1%}" if row["volume_error"] is not None else f"{'-':>8}",
            f"{row['missed']}/{row['references']}".rjust(8),
        ]
        lines.append(f"{cell(row.get('name', value)):>{width}} {' '.join(cells)}")
    mean = results["mean_dice"]
    return "\n".join([*lines, f"{results['cases']} cases, mean Dice {mean if mean is None else round(mean, 4)}"])
