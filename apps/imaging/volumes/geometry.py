"""From the file's grid to the model's: which axis is which, which run backwards, and how many voxels there are."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.volume import Affine, Shape, spacing

AS_STORED = "file:"
"""How an orientation begins that does not depend on the patient."""
SPACING_TOLERANCE = 0.01
"""Spacings that differ by less than this share count as equal; headers often hold rounded numbers."""


@dataclass(frozen=True, slots=True)
class AxisMapping:
    """How the model's axes lie in the file's."""

    axes: tuple[int, int, int]
    """For each file axis, the model axis that runs along it."""
    flips: tuple[bool, bool, bool]
    """For each file axis, whether the model's runs the other way."""

    @classmethod
    def between(cls, affine: Affine, orientation: str) -> "AxisMapping":
        """For a volume's affine and a model's orientation (``"RAS"``); oblique volumes take the nearest axes.

        ``"file:zyx"``: the model's axes are the file's, in this order, wherever they point (nnU-Net).
        """
        if orientation.startswith(AS_STORED):
            order = orientation.removeprefix(AS_STORED)
            return cls((order.index("x"), order.index("y"), order.index("z")), (False, False, False))
        from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

        found = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(orientation)))
        x, y, z = (int(row[0]) for row in found)
        fx, fy, fz = (bool(row[1] < 0) for row in found)
        return cls((x, y, z), (fx, fy, fz))

    def to_file(self, values: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        """Per-axis values of the model (patch, spacing), in file order."""
        x, y, z = (values[axis] for axis in self.axes)
        return x, y, z

    def view(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(..., model axes) seen as (..., file axes); writing into it writes the array."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return turned[(..., *(slice(None, None, -1) if flip else slice(None) for flip in self.flips))]


def network_grid(
    shape: Shape, affine: Affine, wanted: tuple[float, float, float], tolerance: float = SPACING_TOLERANCE
) -> Shape:
    """Voxels on the network's grid, in file axes: ``shape`` itself where the spacing is right already.

    Both grids span the same field of view (voxel edges are aligned, not centres).
    """
    have = spacing(affine)
    x, y, z = (
        size if abs(old / new - 1) < tolerance else max(1, round(old / new * size))
        for size, old, new in zip(shape, have, wanted, strict=True)
    )
    return x, y, z


CENTRED_TOLERANCE = 1e-3
"""Of MONAI's ``Spacingd``: spacings that differ by less (in millimetres) count as equal."""


def centred_grid(
    shape: Shape, affine: Affine, wanted: tuple[float, float, float]
) -> tuple[Shape, tuple[float, float, float] | None]:
    """Voxels on the network's grid, as MONAI's ``Spacingd`` lays it: the centres of the first voxels coincide.

    Parameters
    ----------
    wanted
        Millimetres along the file's axes; 0: as the file has them.

    Returns
    -------
    tuple
        The shape, and the network's voxel over the file's along each axis; ``None`` where nothing is to be done.
    """
    steps = []
    for new, old in zip(wanted, spacing(affine), strict=True):
        steps.append(1.0 if not new or abs(new - old) <= CENTRED_TOLERANCE else new / old)
    x, y, z = (round((size - 1) / step + 1.0) for size, step in zip(shape, steps, strict=True))
    if (x, y, z) == shape and all(abs(step - 1) <= CENTRED_TOLERANCE for step in steps):
        return shape, None
    return (x, y, z), (steps[0], steps[1], steps[2])


@dataclass(frozen=True, slots=True)
class LinearInterpolation:
    """Linear interpolation along one axis: each output is ``(1 - weight) * lower + weight * upper``."""

    lower: npt.NDArray[np.intp]
    upper: npt.NDArray[np.intp]
    weight: npt.NDArray[np.float32]

    @classmethod
    def between(cls, size: int, new: int) -> "LinearInterpolation":
        """From ``size`` voxels to ``new`` over the same length; beyond the outermost centres the edge is repeated."""
        place = np.clip((np.arange(new) + 0.5) * (size / new) - 0.5, 0, size - 1)
        lower = np.floor(place).astype(np.intp)
        return cls(lower, np.minimum(lower + 1, size - 1), (place - lower).astype(np.float32))

    @classmethod
    def nearest(cls, size: int, new: int) -> "LinearInterpolation":
        """The same grids, each output the nearest input: of two at equal distance, SciPy's choice."""
        place = np.floor((np.arange(new) + 0.5) * (size / new) - 0.5 + 0.5)
        place = np.clip(place, 0, size - 1).astype(np.intp)
        return cls(place, place, np.zeros(new, np.float32))

    @classmethod
    def centred(
        cls, size: int, new: int, step: float, *, flipped: bool, nearest: bool = False
    ) -> "LinearInterpolation":
        """Outputs ``step`` inputs apart, the first where the first input is; the last, where the axis is flipped."""
        place = np.clip(np.arange(new) * step, 0, size - 1)
        if nearest:
            place = np.rint(place)
        if flipped:
            place = size - 1 - place[::-1]
        lower = np.floor(place).astype(np.intp)
        return cls(lower, np.minimum(lower + 1, size - 1), (place - lower).astype(np.float32))

    def part(self, first: int, stop: int, origin: int) -> "LinearInterpolation":
        """Outputs ``first`` to ``stop``, of values that begin at ``origin``."""
        cut = slice(first, stop)
        return LinearInterpolation(self.lower[cut] - origin, self.upper[cut] - origin, self.weight[cut])

    def __call__(self, values: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
        """Interpolate an array along ``axis``."""
        weight = self.weight.reshape([-1 if index == axis else 1 for index in range(values.ndim)])
        result = np.take(values, self.lower, axis)
        step = np.take(values, self.upper, axis)
        step -= result
        step *= weight
        result += step
        return result


def resample(values: npt.NDArray[np.float32], shape: Shape) -> npt.NDArray[np.float32]:
    """A small volume (x, y, z) onto another grid over the same field of view; the streams give the same numbers."""
    for axis in (1, 0, 2):
        if values.shape[axis] != shape[axis]:
            values = LinearInterpolation.between(values.shape[axis], shape[axis])(values, axis)
    return values
