"""Where the slices of a series lie, and whether they make a regular grid: refused rather than guessed.

Slices that are shifted sideways (a tilted gantry) or unevenly spaced are no grid; where the user asks for it, a
``SliceLayout`` then says how to interpolate one from them (``apps.imaging.dicom.regridding``).
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
"""Direction cosines are unit vectors and perpendicular within this."""
POSITION_TOLERANCE = 0.05
"""Slices this share of the spacing off their place still count as evenly spaced; headers are rounded."""
DUPLICATE_DISTANCE = 1e-2
"""Millimetres below which two slices lie in one place."""
TILT_TOLERANCE = 0.05
"""Millimetres that a slice may lie beside the line through the first one: more is a tilted gantry."""
MISSING_FACTOR = 1.5
"""A gap of more than so many spacings is a missing slice rather than uneven spacing."""

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM counts to the left and posterior, NIfTI to the right and anterior."""


@dataclass(frozen=True, slots=True)
class SliceLayout:
    """Parallel slices in order along their normal."""

    affine: Affine
    """(4, 4): voxel index to millimetres, of the regular grid: the slices' own or, repaired, the one to fill."""
    order: npt.NDArray[np.intp]
    """The slices along their normal."""
    findings: tuple[Finding, ...] = ()
    planes: int = 0
    """Of the repaired grid; 0 where the slices are a grid themselves."""
    heights: npt.NDArray[np.float64] | None = None
    """Repaired: where each slice lies along the normal, in planes of the grid."""
    shifts: npt.NDArray[np.float64] | None = None
    """Repaired: voxels of the grid by which each slice's first one lies off the grid's, (n, 2) along x and y."""
    grown: tuple[int, int] = (0, 0)
    """Repaired: voxels that the grid has more than a slice along x and y, for slices that lie sideways."""


def stack(
    path: Path,
    positions: npt.NDArray[np.float64],
    orientation: npt.NDArray[np.float64],
    pixel_spacing: Sequence[float],
    repair: frozenset[str] = frozenset(),
) -> SliceLayout:
    """The grid that parallel slices make.

    Parameters
    ----------
    path
        For messages.
    positions
        ImagePositionPatient of each slice, (n, 3) millimetres, in any order.
    orientation
        ImageOrientationPatient, six direction cosines.
    pixel_spacing
        Between rows, between columns, in millimetres.
    repair
        Defects (``tilt``, ``spacing``) to interpolate away instead of refusing them.

    Raises
    ------
    BadInput
        If they are not evenly spaced along their normal and may not be repaired.
    """
    along_x, along_y = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(along_x) - 1, np.linalg.norm(along_y) - 1
    if np.abs([*lengths, along_x @ along_y]).max() > COSINE_TOLERANCE:
        raise BadInput(f"{path}: its direction cosines are not perpendicular unit vectors", public="DICOM geometry")
    normal = np.cross(along_x, along_y)
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    heights = positions @ normal
    heights -= heights[0]
    beside = positions - positions[0] - np.outer(heights, normal)
    findings = [found for found in (_spacing(path, np.diff(heights), repair), _tilt(path, beside, repair)) if found]
    affine = np.eye(4)
    affine[:3, 0] = along_x * pixel_spacing[1]
    affine[:3, 1] = along_y * pixel_spacing[0]
    if not findings:
        affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
        affine[:3, 3] = positions[0]
        return SliceLayout(_TO_RAS @ affine, order)
    planes = round(heights[-1] / _typical(np.diff(heights))) + 1
    step = heights[-1] / (planes - 1)
    voxels = np.stack([beside @ along_x / pixel_spacing[1], beside @ along_y / pixel_spacing[0]], axis=1)
    low, high = np.floor(voxels.min(axis=0) + 1e-6), np.ceil(voxels.max(axis=0) - 1e-6)
    affine[:3, 2] = normal * step
    affine[:3, 3] = positions[0] + affine[:3, :2] @ low
    grown = int(high[0] - low[0]), int(high[1] - low[1])
    return SliceLayout(_TO_RAS @ affine, order, tuple(findings), planes, heights / step, voxels - low, grown)


def _typical(gaps: npt.NDArray[np.float64]) -> float:
    """The middle gap: one that occurs, unlike the mean of the middle two."""
    return float(np.sort(gaps)[(len(gaps) - 1) // 2])


def _tilt(path: Path, beside: npt.NDArray[np.float64], repair: frozenset[str]) -> Finding | None:
    if np.abs(beside).max() <= TILT_TOLERANCE:
        return None
    shift = f"slices are shifted sideways by up to {np.linalg.norm(beside, axis=1).max():.1f} mm"
    if "tilt" not in repair:
        line = f"{shift} (tilted gantry); --repair tilt resamples them"
        raise Refusal(path, Defect.GANTRY_TILT, line)
    return Finding(Defect.GANTRY_TILT, Outcome.REPAIR, f"{shift}, resampled")


def _spacing(path: Path, gaps: npt.NDArray[np.float64], repair: frozenset[str]) -> Finding | None:
    typical = _typical(gaps)
    if gaps.min() < DUPLICATE_DISTANCE:
        number = int(gaps.argmin()) + 1
        line = f"slices {number} and {number + 1} lie in the same place"
        raise Refusal(path, Defect.DUPLICATE, line)
    worst = int(np.abs(gaps - typical).argmax())
    if abs(gaps[worst] - typical) <= POSITION_TOLERANCE * typical:
        return None
    between = f"between slices {worst + 1} and {worst + 2} of {len(gaps) + 1}"
    many = int((np.abs(gaps - typical) > POSITION_TOLERANCE * typical).sum())
    whole = abs(gaps[worst] / typical - round(gaps[worst] / typical)) < 2 * POSITION_TOLERANCE
    if gaps[worst] > MISSING_FACTOR * typical and whole:
        defect = Defect.MISSING_SLICE
        line = f"a slice is missing {between}: {gaps[worst]:.2f} mm apart, {typical:.2f} mm elsewhere"
    else:
        defect = Defect.UNEVEN_SPACING
        line = f"uneven spacing: {gaps[worst]:.2f} mm {between}, {typical:.2f} mm typically ({many} gaps differ)"
    if "spacing" not in repair:
        raise Refusal(path, defect, f"{line}; --repair spacing interpolates")
    return Finding(defect, Outcome.REPAIR, f"{line.removeprefix('uneven spacing: ')}; interpolated")
