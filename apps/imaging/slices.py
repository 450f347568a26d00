"""Where the slices of a series lie, and whether they make a regular grid: refused rather than guessed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apps.imaging.volume import Affine
from common.errors import InputError

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


def stack(
    path: Path, positions: npt.NDArray[np.float64], orientation: npt.NDArray[np.float64], pixel_spacing: Sequence[float]
) -> tuple[Affine, npt.NDArray[np.intp]]:
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

    Returns
    -------
    affine : (4, 4)
        Voxel index to millimetres, x to the patient's right, y anterior, z superior.
    order : (n,)
        The slices along their normal.

    Raises
    ------
    InputError
        If they are not evenly spaced along their normal.
    """
    along_x, along_y = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(along_x) - 1, np.linalg.norm(along_y) - 1
    if np.abs([*lengths, along_x @ along_y]).max() > COSINE_TOLERANCE:
        raise InputError(f"{path}: its direction cosines are not perpendicular unit vectors", public="DICOM geometry")
    normal = np.cross(along_x, along_y)
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    heights = positions @ normal
    _check_spacing(path, np.diff(heights))
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    beside = positions - positions[0] - np.outer(heights - heights[0], normal)
    if np.abs(beside).max() > TILT_TOLERANCE:
        shift = np.linalg.norm(beside, axis=1).max()
        line = f"{path}: slices are shifted sideways by up to {shift:.1f} mm (tilted gantry)"
        raise InputError(line, public="tilted gantry")
    affine = np.eye(4)
    affine[:3, 0] = along_x * pixel_spacing[1]
    affine[:3, 1] = along_y * pixel_spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, order


def _check_spacing(path: Path, gaps: npt.NDArray[np.float64]) -> None:
    typical = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # a gap that occurs, unlike the mean of the middle two
    if gaps.min() < DUPLICATE_DISTANCE:
        number = int(gaps.argmin()) + 1
        raise InputError(f"{path}: slices {number} and {number + 1} lie in the same place", public="duplicate slices")
    worst = int(np.abs(gaps - typical).argmax())
    if abs(gaps[worst] - typical) <= POSITION_TOLERANCE * typical:
        return
    between = f"between slices {worst + 1} and {worst + 2} of {len(gaps) + 1}"
    many = int((np.abs(gaps - typical) > POSITION_TOLERANCE * typical).sum())
    whole = abs(gaps[worst] / typical - round(gaps[worst] / typical)) < 2 * POSITION_TOLERANCE
    if gaps[worst] > MISSING_FACTOR * typical and whole:
        raise InputError(
            f"{path}: a slice is missing {between}: {gaps[worst]:.2f} mm apart, {typical:.2f} mm elsewhere",
            public="missing slice",
        )
    raise InputError(
        f"{path}: uneven spacing: {gaps[worst]:.2f} mm {between}, {typical:.2f} mm typically ({many} gaps differ)",
        public="uneven spacing",
    )
