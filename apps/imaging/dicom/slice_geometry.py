"""Positions of a series' slices, and the regular grid that they make; without one the series is refused.

Slices that are shifted sideways (a tilted gantry) or unevenly spaced make no grid. If the user asks for a repair,
``SliceLayout`` describes how to interpolate one from them (``apps.imaging.dicom.regridding``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apps.imaging.dicom.defects import Defect, Finding, Outcome, Refusal
from apps.imaging.volumes.volume import Affine
from common.errors import BadInput

COSINE_TOLERANCE = 1e-2
"""Tolerance within which direction cosines are perpendicular unit vectors."""
POSITION_TOLERANCE = 0.05
"""Share of the spacing by which a gap between slices may differ from it; headers have rounded numbers."""
DUPLICATE_DISTANCE = 1e-2
"""Millimetres below which two slices have the same position."""
TILT_TOLERANCE = 0.05
"""Millimetres by which a slice may be off the normal through the first one; more is a tilted gantry."""
MISSING_FACTOR = 1.5
"""A gap of more spacings than this is a missing slice rather than uneven spacing."""
MOST_DECIMALS = 6
"""Decimals beyond which a header's numbers count as exact."""
ROUNDING_SLACK = 1.5
"""Largest distance from the best grid, in half units of the last decimal: the grid is fitted to rounded numbers."""
LARGEST_ROUNDING = 0.15
"""Share of the spacing that rounding may make up; a slice that is missing moves some slice by a quarter at least."""
TURN_TOLERANCE = 1e-3
"""Millimetres by which slices may drift sideways in a millimetre of height: cosines are rounded too (0.06 degrees)."""

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's axes point to the left and posterior, NIfTI's to the right and anterior."""


@dataclass(frozen=True, slots=True)
class SliceLayout:
    """Parallel slices in order along their normal."""

    affine: Affine
    """(4, 4): voxel index to millimetres, of the slices' own grid or of the one that is interpolated."""
    order: npt.NDArray[np.intp]
    """(n,): numbers of the slices along their normal."""
    findings: tuple[Finding, ...] = ()
    planes: int = 0
    """Planes of the interpolated grid; 0 if the slices are a grid themselves."""
    heights: npt.NDArray[np.float64] | None = None
    """(n,): position of each slice along the normal, in planes of the interpolated grid."""
    shifts: npt.NDArray[np.float64] | None = None
    """(n, 2): offset of each slice's first voxel from the interpolated grid's, in voxels along x and y."""
    grown: tuple[int, int] = (0, 0)
    """Voxels by which the interpolated grid is larger than a slice along x and y, so that it holds all slices."""


def stack(
    path: Path,
    positions: npt.NDArray[np.float64],
    orientation: npt.NDArray[np.float64],
    pixel_spacing: Sequence[float],
    repair: frozenset[str] = frozenset(),
) -> SliceLayout:
    """Find the grid that parallel slices make.

    Parameters
    ----------
    path
        For messages.
    positions
        (n, 3): ImagePositionPatient of each slice in millimetres, in any order.
    orientation
        (6,): ImageOrientationPatient, direction cosines.
    pixel_spacing
        Between rows, between columns, in millimetres.
    repair
        Defects (``tilt``, ``spacing``) to interpolate away instead of refusing them.

    Raises
    ------
    BadInput
        If the slices make no regular grid and may not be repaired.
    """
    along_x, along_y = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(along_x) - 1, np.linalg.norm(along_y) - 1
    if max(abs(float(error)) for error in (*lengths, along_x @ along_y)) > COSINE_TOLERANCE:
        raise BadInput(f"{path}: its direction cosines are not perpendicular unit vectors", public="DICOM geometry")
    normal = np.cross(along_x, along_y)
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    heights = positions @ normal
    heights -= heights[0]
    sideways = positions - positions[0] - np.outer(heights, normal)
    rounding = ROUNDING_SLACK * _half_unit(positions)
    rounded = _is_rounded(heights, rounding)
    findings = []
    if not rounded and (uneven := _spacing(path, np.diff(heights), repair)):
        findings.append(uneven)
    turn = ROUNDING_SLACK * _half_unit(orientation) if {*np.abs(orientation)} - {0, 1} else 0
    drifting = _is_drift(sideways, heights, max(TURN_TOLERANCE, turn), max(1e-3, min(rounding, 2 * TILT_TOLERANCE)))
    if not drifting and (tilt := _tilt(path, sideways, repair)):
        findings.append(tilt)
    affine = np.eye(4)
    affine[:3, 0] = along_x * pixel_spacing[1]
    affine[:3, 1] = along_y * pixel_spacing[0]
    if not findings:
        affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
        affine[:3, 3] = positions[0]
        return SliceLayout(_TO_RAS @ affine, order)
    planes = round(heights[-1] / _typical(np.diff(heights))) + 1
    step = heights[-1] / (planes - 1)
    voxels = np.stack([sideways @ along_x / pixel_spacing[1], sideways @ along_y / pixel_spacing[0]], axis=1)
    low, high = np.floor(voxels.min(axis=0) + 1e-6), np.ceil(voxels.max(axis=0) - 1e-6)
    affine[:3, 2] = normal * step
    affine[:3, 3] = positions[0] + affine[:3, :2] @ low
    grown = int(high[0] - low[0]), int(high[1] - low[1])
    return SliceLayout(_TO_RAS @ affine, order, tuple(findings), planes, heights / step, voxels - low, grown)


def _half_unit(values: npt.NDArray[np.float64]) -> float:
    """Half of the last decimal to which a header's numbers are printed: what rounding may have moved them by."""
    for decimals in range(MOST_DECIMALS + 1):
        if np.abs(values - np.round(values, decimals)).max() < 1e-9:
            return 0.5 * 10.0**-decimals
    return 0.0


def _is_rounded(heights: npt.NDArray[np.float64], rounding: float) -> bool:
    """True if slices are evenly spaced up to the rounding of their positions: all are near the best grid."""
    step = heights[-1] / (len(heights) - 1)
    if len(heights) < 3 or step < DUPLICATE_DISTANCE:
        return False
    line = np.polynomial.Polynomial.fit(np.arange(len(heights)), heights, 1)
    return bool(np.abs(heights - line(np.arange(len(heights)))).max() <= min(rounding, LARGEST_ROUNDING * step))


def _is_drift(
    sideways: npt.NDArray[np.float64], heights: npt.NDArray[np.float64], slope: float, tolerance: float
) -> bool:
    """True if slices move sideways only as a normal from rounded cosines makes them seem to."""
    per_height = heights @ sideways / max(float(heights @ heights), 1e-12)
    rest = sideways - np.outer(heights, per_height)
    return bool(np.linalg.norm(per_height) <= slope and np.abs(rest).max() <= tolerance)


def _typical(gaps: npt.NDArray[np.float64]) -> float:
    """The median gap; of an even number the lower one, which occurs, instead of the mean of the middle two."""
    return float(np.sort(gaps)[(len(gaps) - 1) // 2])


def _tilt(path: Path, sideways: npt.NDArray[np.float64], repair: frozenset[str]) -> Finding | None:
    if np.abs(sideways).max() <= TILT_TOLERANCE:
        return None
    shift = f"slices are shifted sideways by up to {np.linalg.norm(sideways, axis=1).max():.1f} mm"
    if "tilt" not in repair:
        raise Refusal(path, Defect.GANTRY_TILT, f"{shift} (tilted gantry); --repair tilt resamples them")
    return Finding(Defect.GANTRY_TILT, Outcome.REPAIR, f"{shift}, resampled")


def _spacing(path: Path, gaps: npt.NDArray[np.float64], repair: frozenset[str]) -> Finding | None:
    typical = _typical(gaps)
    if gaps.min() < DUPLICATE_DISTANCE:
        number = int(gaps.argmin()) + 1
        raise Refusal(path, Defect.DUPLICATE, f"slices {number} and {number + 1} have the same position")
    worst = int(np.abs(gaps - typical).argmax())
    if abs(gaps[worst] - typical) <= POSITION_TOLERANCE * typical:
        return None
    between = f"between slices {worst + 1} and {worst + 2} of {len(gaps) + 1}"
    many = int((np.abs(gaps - typical) > POSITION_TOLERANCE * typical).sum())
    whole = abs(gaps[worst] / typical - round(gaps[worst] / typical)) < 2 * POSITION_TOLERANCE
    if gaps[worst] > MISSING_FACTOR * typical and whole:
        defect = Defect.MISSING_SLICE
        message = f"a slice is missing {between}: {gaps[worst]:.2f} mm apart, {typical:.2f} mm elsewhere"
    else:
        defect = Defect.UNEVEN_SPACING
        message = f"uneven spacing: {gaps[worst]:.2f} mm {between}, {typical:.2f} mm typically ({many} gaps differ)"
    if "spacing" not in repair:
        raise Refusal(path, defect, f"{message}; --repair spacing interpolates")
    return Finding(defect, Outcome.REPAIR, f"{message.removeprefix('uneven spacing: ')}; interpolated")
