"""The map from the file's grid to the model's: which axis is which, which are reversed, how many voxels there are."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.volume import Affine, Shape, spacing

AS_STORED = "file:"
"""Prefix of an orientation that does not depend on the patient."""
SPACING_TOLERANCE = 0.01
"""Spacings that differ by less than this share count as equal; headers often have rounded numbers."""
CENTRED_TOLERANCE = 1e-3
"""Spacings that differ by less, in millimetres, count as equal in MONAI's ``Spacingd``."""

T = TypeVar("T")
Value = TypeVar("Value", bound=np.generic)


def axis_codes(affine: Affine) -> tuple[str | None, ...]:
    """Directions of the file's axes, ``("R", "A", "S")`` for example; ``None`` for an axis without a direction."""
    from nibabel.orientations import aff2axcodes

    codes: tuple[str | None, ...] = aff2axcodes(affine)
    return codes


@dataclass(frozen=True, slots=True)
class AxisMapping:
    """Mapping of the model's axes to the file's."""

    axes: tuple[int, int, int]
    """For each file axis, the model axis along it."""
    flips: tuple[bool, bool, bool]
    """For each file axis, whether the model's axis is reversed."""

    @classmethod
    def between(cls, affine: Affine, orientation: str) -> "AxisMapping":
        """Map a volume's axes to a model's.

        Parameters
        ----------
        affine
            (4, 4), of the volume; of an oblique one the nearest axes are taken.
        orientation
            Orientation of the model: ``"RAS"``, or ``"file:zyx"`` for the file's axes in this order.
        """
        if orientation.startswith(AS_STORED):
            order = orientation.removeprefix(AS_STORED)
            return cls((order.index("x"), order.index("y"), order.index("z")), (False, False, False))
        from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

        stored = io_orientation(affine)
        target = axcodes2ornt(tuple(orientation))
        rows: npt.NDArray[np.float64] = ornt_transform(stored, target)
        x, y, z = (int(row[0]) for row in rows)
        flip_x, flip_y, flip_z = (bool(row[1] < 0) for row in rows)
        return cls((x, y, z), (flip_x, flip_y, flip_z))

    def to_file(self, values: tuple[T, T, T]) -> tuple[T, T, T]:
        """Reorder values along the model's axes (patch, spacing) to the file's.

        Examples
        --------
        >>> AxisMapping((2, 0, 1), (False, False, False)).to_file((1.0, 2.0, 3.0))
        (3.0, 1.0, 2.0)
        """
        x, y, z = (values[axis] for axis in self.axes)
        return x, y, z

    def to_model(self, values: tuple[T, T, T]) -> tuple[T, T, T]:
        """Reorder values along the file's axes to the model's.

        Examples
        --------
        >>> AxisMapping((2, 0, 1), (False, False, False)).to_model((3.0, 1.0, 2.0))
        (1.0, 2.0, 3.0)
        """
        x, y, z = (values[self.axes.index(axis)] for axis in range(3))
        return x, y, z

    def view(self, array: npt.NDArray[Value]) -> npt.NDArray[Value]:
        """View an array (..., model axes) as (..., file axes); writing into the view writes the array."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return turned[(..., *(slice(None, None, -1) if flip else slice(None) for flip in self.flips))]


def network_grid(
    shape: Shape, affine: Affine, target: tuple[float, float, float], tolerance: float = SPACING_TOLERANCE
) -> Shape:
    """Voxels on the network's grid along the file's axes, where both grids have the same field of view.

    Voxel edges are aligned, not centres. Where the spacing is right already, this is ``shape`` itself.

    Parameters
    ----------
    target
        Millimetres along the file's axes.
    tolerance
        Share by which spacings may differ and still count as equal.
    """
    x, y, z = (
        size if abs(old / new - 1) < tolerance else max(1, round(old / new * size))
        for size, old, new in zip(shape, spacing(affine), target, strict=True)
    )
    return x, y, z


def centred_grid(
    shape: Shape, affine: Affine, target: tuple[float, float, float]
) -> tuple[Shape, tuple[float, float, float] | None]:
    """Voxels on the network's grid as MONAI's ``Spacingd`` lays it: the centres of the first voxels coincide.

    Parameters
    ----------
    target
        Millimetres along the file's axes; 0: as the file has them.

    Returns
    -------
    tuple
        The shape, and the size of the network's voxel over the file's along each axis; ``None`` if the grids are equal.
    """
    steps = []
    for new, old in zip(target, spacing(affine), strict=True):
        steps.append(1.0 if not new or abs(new - old) <= CENTRED_TOLERANCE else new / old)
    x, y, z = (round((size - 1) / step + 1.0) for size, step in zip(shape, steps, strict=True))
    if (x, y, z) == shape and all(abs(step - 1) <= CENTRED_TOLERANCE for step in steps):
        return shape, None
    return (x, y, z), (steps[0], steps[1], steps[2])


@dataclass(frozen=True, slots=True)
class LinearInterpolation:
    """Linear interpolation along one axis.

    Output i is ``(1 - weight[i]) * x[lower[i]] + weight[i] * x[upper[i]]``, times ``scale[i]`` if there is one.
    """

    lower: npt.NDArray[np.intp]
    upper: npt.NDArray[np.intp]
    weight: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32] | None = None

    @classmethod
    def between(cls, size: int, new: int) -> "LinearInterpolation":
        """Interpolate ``size`` voxels to ``new`` over the same length; beyond the outermost centres the edge is
        repeated."""
        position = np.clip((np.arange(new) + 0.5) * (size / new) - 0.5, 0, size - 1)
        lower = np.floor(position).astype(np.intp)
        return cls(lower, np.minimum(lower + 1, size - 1), (position - lower).astype(np.float32))

    @classmethod
    def nearest(cls, size: int, new: int) -> "LinearInterpolation":
        """Take the nearest of ``size`` voxels for each of ``new`` over the same length; of two at the same distance,
        SciPy's choice."""
        position = np.floor((np.arange(new) + 0.5) * (size / new) - 0.5 + 0.5)
        index = np.clip(position, 0, size - 1).astype(np.intp)
        return cls(index, index, np.zeros(new, np.float32))

    @classmethod
    def centred(
        cls, size: int, new: int, step: float, *, flipped: bool, nearest: bool = False
    ) -> "LinearInterpolation":
        """Place outputs ``step`` inputs apart.

        Parameters
        ----------
        flipped
            True: the last output lies on the last input, instead of the first on the first.
        nearest
            True: take the nearest input instead of interpolating.
        """
        position = np.clip(np.arange(new) * step, 0, size - 1)
        if nearest:
            position = np.rint(position)
        if flipped:
            position = size - 1 - position[::-1]
        lower = np.floor(position).astype(np.intp)
        return cls(lower, np.minimum(lower + 1, size - 1), (position - lower).astype(np.float32))

    def part(self, first: int, stop: int, origin: int) -> "LinearInterpolation":
        """Cut out outputs ``first`` to ``stop``, for an array whose first value is input ``origin``."""
        cut = slice(first, stop)
        scale = None if self.scale is None else self.scale[cut]
        return LinearInterpolation(self.lower[cut] - origin, self.upper[cut] - origin, self.weight[cut], scale)

    def within(self, low: int, size: int) -> "LinearInterpolation":
        """The same for an array that has only inputs ``low`` to ``low + size``; the others are zero.

        Examples
        --------
        >>> part = LinearInterpolation.between(4, 8).within(1, 2)
        >>> part(np.array([8, 4], np.float32), 0).tolist()
        [0.0, 2.0, 6.0, 7.0, 5.0, 3.0, 1.0, 0.0]
        """
        has_lower, has_upper = ((low <= index) & (index < low + size) for index in (self.lower, self.upper))
        scale = np.where(has_lower, np.where(has_upper, 1, 1 - self.weight), np.where(has_upper, self.weight, 0))
        return LinearInterpolation(
            np.clip(np.where(has_lower, self.lower, self.upper) - low, 0, size - 1),
            np.clip(np.where(has_upper, self.upper, self.lower) - low, 0, size - 1),
            np.where(has_lower & has_upper, self.weight, 0).astype(np.float32),
            scale.astype(np.float32),
        )

    def __call__(self, values: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
        """Interpolate an array along ``axis``."""
        weight = self.weight.reshape([-1 if index == axis else 1 for index in range(values.ndim)])
        result = np.take(values, self.lower, axis)
        step = np.take(values, self.upper, axis)
        step -= result
        step *= weight
        result += step
        if self.scale is not None:
            result *= self.scale.reshape(weight.shape)
        return result


@dataclass(frozen=True, slots=True)
class AreaInterpolation(LinearInterpolation):
    """Means along one axis, as PyTorch's mode ``area`` takes them: output i is the mean of all inputs that it covers in
    part, ``lower[i]`` to ``upper[i]``."""

    @classmethod
    def of(cls, size: int, new: int, *, flipped: bool) -> "AreaInterpolation":
        """Cover ``size`` inputs by ``new`` outputs of the same length; ``flipped``: counted from the far end.

        Examples
        --------
        >>> AreaInterpolation.of(5, 2, flipped=False)(np.array([1, 2, 6, 4, 5], np.float32), 0).tolist()
        [3.0, 5.0]
        """
        number = np.arange(new)
        lower, upper = number * size // new, -(-(number + 1) * size // new) - 1
        if flipped:
            lower, upper = size - 1 - upper[::-1], size - 1 - lower[::-1]
        return cls(lower, upper, np.zeros(new, np.float32))

    def part(self, first: int, stop: int, origin: int) -> "AreaInterpolation":
        """As for linear interpolation."""
        cut = slice(first, stop)
        return AreaInterpolation(self.lower[cut] - origin, self.upper[cut] - origin, self.weight[cut])

    def __call__(self, values: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
        """Take means along ``axis``."""
        counts, along = self.upper - self.lower + 1, [-1 if index == axis else 1 for index in range(values.ndim)]
        result = np.take(values, self.lower, axis)
        for further in range(1, int(counts.max(initial=0))):
            more = np.take(values, np.minimum(self.lower + further, self.upper), axis)
            more *= (further < counts).astype(np.float32).reshape(along)
            result += more
        result /= counts.astype(np.float32).reshape(along)
        return result


def resample(values: npt.NDArray[np.float32], shape: Shape) -> npt.NDArray[np.float32]:
    """Interpolate a small volume (x, y, z) to another grid with the same field of view; ``ResamplingReader`` gives the
    same numbers."""
    for axis in (1, 0, 2):
        if values.shape[axis] != shape[axis]:
            values = LinearInterpolation.between(values.shape[axis], shape[axis])(values, axis)
    return values
