"""``imaging evaluate``: compare segmentations with references, case by case and plane by plane.

Overlap and volumes are counts. Surface distances come from a k-d tree of the surfaces' points, whose memory grows with
the surface, not with the volume. A surface voxel has a face neighbour of another label; distances are between voxel
centres in millimetres. HD95 is the larger of the two directed 95th percentiles, and surface Dice the share of both
surfaces that lies within the tolerance of the other, as MONAI defines them.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.inference.studies import TABLE, read_table, stem_of
from apps.imaging.volumes import nifti
from apps.imaging.volumes.nifti import NiftiVolume
from apps.imaging.volumes.volume import spacing
from common.errors import BadInput

TOLERANCE = 1.0
"""Millimetres within which two surfaces agree (surface Dice)."""
AFFINE_TOLERANCE = 1e-2
"""Millimetres by which voxel positions of prediction and reference may differ."""
COORDINATE = np.int16
"""Type of a voxel index."""
QUERY = 1 << 16
"""Points whose nearest neighbours are searched at a time."""

_CHANNEL = re.compile(r"_\d{4}$")
"""The end of an image's name in nnU-Net's layout."""
LARGEST_LABEL = 2**53
"""Integers up to this are exact in double precision."""

Points = npt.NDArray[np.int16]
LabelPlane = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prediction and its reference, with checked headers."""

    case: str
    """``case-0001``, because a file's name may identify a patient."""
    prediction: NiftiVolume
    reference: NiftiVolume


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


def find_pairs(predictions: Path, references: Path, *, repair: bool = False) -> list[Pair]:
    """Match files by name, outputs of ``imaging infer`` by the names of their inputs (``studies.csv``).

    Parameters
    ----------
    repair
        True to repair headers that contradict themselves instead of refusing them.

    Raises
    ------
    BadInput
        Nothing to compare, a prediction without reference, or grids that differ.
    """
    for path in (predictions, references):
        if not path.exists():
            raise BadInput(f"{path}: no such file or folder", public="no such input")
    if predictions.is_file() and references.is_file():
        named = [(predictions, references)]
    elif predictions.is_dir() and references.is_dir():
        named = _by_name(predictions, references)
    else:
        raise BadInput(f"{predictions} and {references}: compare two files, or two folders", public="file and folder")
    return [_pair(number, *paths, repair=repair) for number, paths in enumerate(named, start=1)]


def _by_name(predictions: Path, references: Path) -> list[tuple[Path, Path]]:
    by_name = {nifti.stem(path): path for path in sorted(references.iterdir()) if nifti.is_nifti(path)}
    rows = read_table(predictions)
    inputs = {stem_of(row.outputs): nifti.stem(Path(row.input)) for row in rows if row.outputs}
    files = [path for path in sorted(predictions.iterdir()) if nifti.is_nifti(path) and not path.name.startswith(".")]
    if not files:
        raise BadInput(f"{predictions}: no .nii or .nii.gz files in it", public="nothing to evaluate")
    pairs = []
    for path in files:
        name = nifti.stem(path)
        name = inputs.get(name, name)
        if name not in by_name:
            name = _CHANNEL.sub("", name)  # nnU-Net's images have the number of their channel, and its labels none
        if name not in by_name:
            hint = f" (looked for {name} by {TABLE})" if inputs else ""
            raise BadInput(f"{path}: no reference of that name in {references}{hint}", public="reference missing")
        pairs.append((path, by_name[name]))
    return pairs


def _pair(number: int, prediction: Path, reference: Path, *, repair: bool) -> Pair:
    one, two = (nifti.open_nifti(path, repair=repair) for path in (prediction, reference))
    if one.shape != two.shape:
        raise BadInput(
            f"{prediction}: its shape {one.shape} is not the reference's {two.shape}", public="shapes differ"
        )
    corners = np.array([[x, y, z, 1] for x in (0, one.shape[0]) for y in (0, one.shape[1]) for z in (0, one.shape[2])])
    if np.abs((one.affine - two.affine) @ corners.T).max() > AFFINE_TOLERANCE:
        raise BadInput(f"{prediction}: lies elsewhere than its reference {reference}", public="geometry differs")
    return Pair(f"case-{number:04d}", one, two)


def planes(volume: NiftiVolume) -> Iterator[LabelPlane]:
    """Label planes (y, x) of a volume, one at a time.

    Raises
    ------
    BadInput
        If a value is not a whole number, or too large to be exact.
    """
    x, y, z = volume.shape
    buffer = np.empty((1, y, x), volume.dtype)
    with volume.open() as reader:
        for _ in range(z):
            reader.read(buffer)
            yield _labels(volume, buffer[0])


def _labels(volume: NiftiVolume, stored: npt.NDArray[Any]) -> LabelPlane:
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


def surfaces(volume: NiftiVolume, counts: Mapping[int, int]) -> dict[int, Points]:
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
    for z, (plane, edge) in enumerate(edges(planes(volume))):
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


def compare(pair: Pair, counts: Scan) -> dict[int, dict[str, float | None]]:
    """All measures of a pair by label value; distances are ``None`` if one of the two has no such label."""
    edge = spacing(pair.reference.affine)
    millilitres = abs(float(np.linalg.det(pair.reference.affine[:3, :3]))) / 1000
    sides = [
        surfaces(volume, surface)
        for volume, surface in zip((pair.prediction, pair.reference), counts.surface, strict=True)
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
            row |= _surface_measures(sides[0].pop(value), sides[1].pop(value), edge)
        results[value] = row
    return results


def _surface_measures(one: Points, two: Points, edge: Sequence[float]) -> dict[str, float | None]:
    forth, back = distances(one, two, edge), distances(two, one, edge)
    near = int((forth <= TOLERANCE).sum()) + int((back <= TOLERANCE).sum())
    return {
        "hd95_mm": float(max(np.percentile(forth, 95), np.percentile(back, 95))),
        "surface_dice": near / (len(forth) + len(back)),
    }


def evaluate(
    pairs: Sequence[Pair], scans: Sequence[Scan], tick: Callable[[int], Any] = lambda count: None
) -> dict[str, Any]:
    """Measure all cases.

    Parameters
    ----------
    tick
        Called with 1 after each case.

    Returns
    -------
    dict
        The record's ``results`` (``data/schemas/run.schema.json``): ``per_class``, means over the cases that have the
        class, and ``per_case``.
    """
    cases: list[dict[str, Any]] = []
    for pair, counts in zip(pairs, scans, strict=True):
        measures = compare(pair, counts)
        dice = [row["dice"] for row in measures.values() if row["dice"] is not None]
        classes = {str(value): row for value, row in measures.items()}
        cases.append({"case": pair.case, "dice": float(np.mean(dice)) if dice else None, "classes": classes})
        tick(1)
    values = sorted({value for case in cases for value in case["classes"]}, key=int)
    per_class = {value: _mean([c["classes"][value] for c in cases if value in c["classes"]]) for value in values}
    all_dice = [mean for row in per_class.values() if (mean := row["dice"]) is not None]
    return {
        "cases": len(cases),
        "mean_dice": float(np.mean(all_dice)) if all_dice else None,
        "tolerance_mm": TOLERANCE,
        "per_class": per_class,
        "per_case": cases,
    }


def _mean(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in ("dice", "hd95_mm", "surface_dice", "volume_error"):
        values = [value for row in rows if (value := row[name]) is not None]
        means[name] = float(np.mean(values)) if values else None
    return means


def table(results: Mapping[str, Any]) -> str:
    """The means of each class as a table for a terminal."""
    lines = [f"{'label':>6} {'Dice':>7} {'HD95 mm':>8} {'surface':>8} {'volume':>8}"]
    for value, row in results["per_class"].items():
        cells = [
            f"{row['dice']:7.4f}",
            f"{row['hd95_mm']:8.2f}" if row["hd95_mm"] is not None else f"{'-':>8}",
            f"{row['surface_dice']:8.4f}",
            f"{row['volume_error']:+8.1%}" if row["volume_error"] is not None else f"{'-':>8}",
        ]
        lines.append(f"{value:>6} {' '.join(cells)}")
    mean = results["mean_dice"]
    return "\n".join([*lines, f"{results['cases']} cases, mean Dice {mean if mean is None else round(mean, 4)}"])
