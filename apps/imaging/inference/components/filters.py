"""What is done by connected components: small ones removed, the largest kept, holes found."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apps.imaging.inference.components.streaming import Ended, Index, Labels, Mask, kept_components
from apps.imaging.volumes.volume import Affine


def least_voxels(millilitres: float, affine: Affine) -> int:
    """Number of voxels that together have at least so many ``millilitres``."""
    voxel = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    return int(np.ceil(millilitres / voxel - 1e-9))


class _Least(Ended):
    """Keeps components whose measure is at least a number."""

    def __init__(self, least: int) -> None:
        self._least = least

    def kept(self, number: int, measures: Index) -> Mask:
        return measures >= self._least


def without_small(slabs: Iterable[Labels], least: int, scratch: Path) -> Iterator[Labels]:
    """Make components of fewer than ``least`` voxels, which touch by their faces, background.

    Parameters and yields as those of ``kept_components``.
    """
    return kept_components(slabs, scratch, _Least(least))


class _Largest(Ended):
    """Keeps the largest component of each label, and all of other labels; of equal ones the first that ends."""

    def __init__(self, values: Collection[int] | None) -> None:
        self._values = None if values is None else np.array(sorted(values))
        self._best: dict[int, tuple[int, int, int]] = {}
        """Label -> size, number of the plane where it ends, group there."""
        self._others: dict[int, Index] = {}
        """Plane -> groups that end there and are of labels that are left alone."""

    def seen(self, number: int, values: Labels, measures: Index, ended: Mask) -> None:
        groups = np.flatnonzero(ended & (values != 0))
        chosen = np.ones(len(groups), bool) if self._values is None else np.isin(values[groups], self._values)
        if not chosen.all():
            self._others[number] = groups[~chosen]
        for group in groups[chosen]:
            value, size = int(values[group]), int(measures[group])
            if size > self._best.get(value, (0, 0, 0))[0]:
                self._best[value] = size, number, int(group)

    def kept(self, number: int, measures: Index) -> Mask:
        keep = np.zeros(len(measures), bool)
        keep[self._others.pop(number, [])] = True
        keep[[group for _, plane, group in self._best.values() if plane == number]] = True
        return keep


def largest_only(slabs: Iterable[Labels], values: Collection[int] | None, scratch: Path) -> Iterator[Labels]:
    """Keep of each label only its largest component, as MONAI's ``KeepLargestConnectedComponent`` does.

    Voxels touch by faces, edges and corners.

    Parameters
    ----------
    slabs, scratch
        As those of ``kept_components``.
    values
        Labels of which the others are removed; ``None``: all.
    """
    return kept_components(slabs, scratch, _Largest(values), diagonal=True)


class _Major(_Largest):
    """Keeps components of at least a share of the largest one of their label."""

    def __init__(self, share: float) -> None:
        super().__init__(None)
        self._share = share
        self._ended: dict[int, tuple[Index, Labels]] = {}
        """Plane -> groups that end there, and their labels."""

    def seen(self, number: int, values: Labels, measures: Index, ended: Mask) -> None:
        super().seen(number, values, measures, ended)
        groups = np.flatnonzero(ended & (values != 0))
        self._ended[number] = groups, values[groups]

    def kept(self, number: int, measures: Index) -> Mask:
        keep = np.zeros(len(measures), bool)
        groups, values = self._ended.pop(number)
        least = np.array([self._share * self._best[int(value)][0] for value in values])
        keep[groups] = measures[groups] >= least
        return keep


def major_only(slabs: Iterable[Labels], share: float, scratch: Path) -> Iterator[Labels]:
    """Make components smaller than a share of the largest one of their label background.

    Parameters
    ----------
    slabs, scratch
        As those of ``kept_components``. Voxels touch by faces.
    share
        In [0, 1].
    """
    return kept_components(slabs, scratch, _Major(share))


def without_holes(
    planes: Iterable[npt.NDArray[np.bool_]], count: int, scratch: Path
) -> Iterator[npt.NDArray[np.bool_]]:
    """Fill the holes of a mask, as ``scipy.ndimage.binary_fill_holes`` does.

    Parameters
    ----------
    planes
        (y, x), in order.
    count
        Number of planes.
    scratch
        Directory on the disk where they wait.

    Yields
    ------
    array (y, x)
        The same planes, also true where no path of false voxels leads to the border of the volume.
    """
    at = 0

    def at_border(component: Index, size: int) -> Index:
        nonlocal at
        ends, at = at in (0, count - 1), at + 1
        edge = component if ends else np.concatenate([component[[0, -1]].ravel(), component[:, [0, -1]].ravel()])
        return np.isin(np.arange(size), edge).astype(np.int64)

    empty = ((~plane).astype(np.uint8)[..., None] for plane in planes)
    for outside in kept_components(empty, scratch, _Least(1), measure=at_border):
        yield outside[..., 0] == 0
