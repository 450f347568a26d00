"""The grid of a NIfTI header, in millimetres, which such headers state twice: sform, qform and voxel sizes.

A header that contradicts itself is refused, because nobody can tell which part is right. ``--repair header`` takes the
part that agrees with ``pixdim``. Lengths are converted from the header's unit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.volume import Affine, spacing
from common.errors import BadInput

SIZE_TOLERANCE = 0.01
"""Share by which voxel sizes of two parts of a header may differ: headers have rounded numbers."""
ANGLE_TOLERANCE = 1.0
"""Degrees by which the axes of sform and qform may differ."""
SHEAR_TOLERANCE = 0.01
"""Largest cosine between two axes that count as perpendicular (0.6 degrees)."""
MILLIMETRES = {1: 1000.0, 3: 0.001}
"""By ``xyzt_units``: metre, micrometre; any other unit counts as millimetre."""
_UNIT_NAMES = {1: "metres", 3: "micrometres"}


@dataclass(frozen=True, slots=True)
class HeaderGrid:
    """Where the voxels lie."""

    affine: Affine
    """(4, 4): voxel index to millimetres."""
    repaired: bool = False
    """True if the header's own affine is another one."""
    notes: tuple[str, ...] = ()
    """Peculiarities of the header, and repairs."""


def header_grid(path: Path, header: Any, affine: Affine, *, repair: bool = False) -> HeaderGrid:
    """Check a header against itself.

    Parameters
    ----------
    path
        For messages.
    header
        nibabel's.
    affine
        (4, 4): nibabel's choice, the sform if it is in force, else the qform.
    repair
        True to settle a contradiction by ``pixdim`` instead of refusing it.

    Raises
    ------
    BadInput
        If sform and pixdim, or sform and qform, contradict each other, or the axes are not perpendicular.
    """
    unit = int(header["xyzt_units"]) & 7
    factor = MILLIMETRES.get(unit, 1.0)
    notes = [f"lengths in {_UNIT_NAMES[unit]}, converted to millimetres"] if unit in MILLIMETRES else []
    contradiction = ""
    if int(header["sform_code"]) > 0:
        contradiction, note = _contradiction(header, affine)
        notes += [note] if note else []
    if contradiction:
        chosen, what = _agreeing(header, affine)
        if chosen is None or not repair:
            hint = f"; --repair header takes {what}" if chosen is not None else "; no other part of it can be taken"
            raise BadInput(f"{path}: its header contradicts itself: {contradiction}{hint}", public="NIfTI header")
        affine = chosen
        notes.append(f"repaired: {contradiction}; took {what}")
    affine = np.array(affine, np.float64)
    affine[:3] *= factor
    return HeaderGrid(affine, bool(contradiction), tuple(notes))


def _contradiction(header: Any, affine: Affine) -> tuple[str, str]:
    """The contradiction, and a difference that is no contradiction; both may be empty."""
    sizes, edges = np.abs(np.asarray(header["pixdim"][1:4], np.float64)), spacing(affine)
    if np.any(np.abs(edges / np.maximum(sizes, 1e-12) - 1) > SIZE_TOLERANCE):
        return f"the sform has voxels of {_sizes(edges)}, pixdim of {_sizes(sizes)}", ""
    axes = affine[:3, :3] / edges
    if np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_TOLERANCE:
        return "the sform is sheared, its axes are not orthogonal", ""
    turned = _angle(axes, _qform(header))
    if turned <= ANGLE_TOLERANCE:
        return "", ""
    codes = int(header["sform_code"]), int(header["qform_code"])
    apart = f"sform and qform (codes {codes[0]} and {codes[1]}) are {turned:.0f} degrees apart"
    # Of different codes they are two spaces, such as the scanner's and a template's; the voxels' sizes agree.
    return (apart, "") if codes[0] == codes[1] else ("", f"{apart}; the sform is used")


def _qform(header: Any) -> npt.NDArray[np.float64] | None:
    """(4, 4): the qform, if it is in force and can be read."""
    try:
        return np.asarray(header.get_qform(), np.float64) if int(header["qform_code"]) > 0 else None
    except ValueError:
        return None


def _angle(axes: npt.NDArray[np.float64], other: npt.NDArray[np.float64] | None) -> float:
    """Largest angle between axes of two grids, in degrees; 180 for a mirrored axis, 0 without another grid."""
    if other is None:
        return 0.0
    lengths = np.maximum(np.linalg.norm(other[:3, :3], axis=0), 1e-12)
    return float(np.degrees(np.arccos(np.clip((axes * (other[:3, :3] / lengths)).sum(axis=0), -1, 1))).max())


def _agreeing(header: Any, affine: Affine) -> tuple[Affine | None, str]:
    """The affine that agrees with pixdim, and its name; of two that do, the sform."""
    sizes, edges, axes = np.abs(np.asarray(header["pixdim"][1:4], np.float64)), spacing(affine), affine[:3, :3]
    sizes_agree = bool(np.all(np.abs(edges / np.maximum(sizes, 1e-12) - 1) <= SIZE_TOLERANCE))
    plain = np.abs((axes / edges).T @ (axes / edges) - np.eye(3)).max() <= SHEAR_TOLERANCE
    if sizes_agree and plain:
        return affine, "the sform"
    if not (np.isfinite(sizes).all() and sizes.min() > 0):
        return None, ""
    qform = _qform(header)
    if qform is not None and abs(np.linalg.det(qform[:3, :3])) > 1e-9:
        return qform, "the qform, which agrees with pixdim"
    if plain:
        scaled = affine.copy()
        scaled[:3, :3] = axes / edges * sizes
        return scaled, "the sform's axes with the sizes of pixdim"
    return None, ""


def _sizes(edges: Any) -> str:
    return " x ".join(f"{size:.4g}" for size in edges)
