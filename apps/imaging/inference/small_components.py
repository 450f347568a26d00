"""``--remove-small``: remove connected components below a volume, in memory that does not grow with the volume.

Voxels of one label that touch by their faces are one component. Its size is known only after its last plane, so the
label planes wait on disk. There are three passes:

1. forward: the components of each plane alone, and the group to which each belongs with the planes before it; a
   group's size so far, and the group of the next plane into which it grows;
2. backward over these tables: a group is kept if it ends large, or grows into a group that is kept;
3. forward: planes are yielded without the components of groups that are not kept.

Only the tables of two planes are in memory at a time.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.volume import Affine, Shape

_PLANE_BYTES = 160
"""Bytes for each voxel of a plane in which every voxel is a component of its own (measured 157)."""

Labels = npt.NDArray[np.unsignedinteger]
Index = npt.NDArray[np.int64]


def least_voxels(millilitres: float, affine: Affine) -> int:
    """Number of voxels that together have at least so many ``millilitres``."""
    voxel = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    return int(np.ceil(millilitres / voxel - 1e-9))


def without_small(slabs: Iterable[Labels], least: int, scratch: Path) -> Iterator[Labels]:
    """Make components of fewer than ``least`` voxels background.

    Parameters
    ----------
    slabs
        Label planes, (x, y, k); all are consumed before the first is yielded.
    scratch
        Directory on the disk where they wait.

    Yields
    ------
    array (x, y, 1)
        The same planes in order.
    """
    with tempfile.TemporaryFile(dir=scratch) as planes, _Tables(scratch) as tables:
        before: _Plane | None = None
        for slab in slabs:
            for k in range(slab.shape[2]):
                labels = np.ascontiguousarray(slab[..., k])
                planes.write(labels.data)
                plane, successor = _grown(before, labels)
                if before is not None:
                    tables.append(before, successor)
                before = plane
        if before is None:
            return
        tables.append(before, np.full(len(before.sizes), -1))
        shape, dtype = before.labels.shape, before.labels.dtype
        tables.decide(least)
        planes.seek(0)
        for number in range(len(tables)):
            labels = np.frombuffer(planes.read(shape[0] * shape[1] * dtype.itemsize), dtype).reshape(shape)
            component, _ = plane_components(labels)
            yield np.where(tables.kept(number)[component], labels, dtype.type(0))[..., None]


@dataclass(frozen=True, slots=True)
class _Plane:
    """A plane of labels, and the groups to which its components belong with the planes before it."""

    labels: Labels
    group: Index
    """By voxel."""
    group_of_component: Index
    sizes: Index
    """Voxels of each group so far."""


class _Tables(AbstractContextManager["_Tables"]):
    """Tables of all planes, on disk: the groups of a plane's components, their sizes and successors, what is kept."""

    def __init__(self, scratch: Path) -> None:
        self._stream = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115
        self._entries: list[tuple[int, int, int]] = []
        """By plane: offset in the file, components, groups."""

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, plane: _Plane, successor: Index) -> None:
        """Add the next plane's table; ``successor`` is the group of the plane after it into which each grows, or -1."""
        self._entries.append((self._stream.tell(), len(plane.group_of_component), len(plane.sizes)))
        for values in (plane.group_of_component, plane.sizes, successor):
            self._stream.write(values.astype(np.int64).data)

    def decide(self, least: int) -> None:
        """Keep groups that end with ``least`` voxels or grow into a kept group, from the last plane to the first."""
        after = np.empty(0, bool)
        for offset, components, groups in reversed(self._entries):
            self._stream.seek(offset)
            values = np.frombuffer(self._stream.read(8 * (components + 2 * groups)), np.int64)
            group_of_component, sizes, successor = np.split(values, [components, components + groups])
            keep = sizes >= least
            grows = successor >= 0
            keep[grows] = after[successor[grows]]
            self._stream.seek(offset)
            self._stream.write(keep[group_of_component].data)  # overwrites the groups
            after = keep

    def kept(self, number: int) -> npt.NDArray[np.bool_]:
        """Mask of the components of a plane that are kept."""
        offset, components, _ = self._entries[number]
        self._stream.seek(offset)
        return np.frombuffer(self._stream.read(components), np.bool_)


def components_bytes(shape: Shape) -> int:
    """Bytes that ``without_small`` takes at most, of a volume of ``shape``."""
    return _PLANE_BYTES * shape[0] * shape[1]


def plane_components(plane: Labels) -> tuple[Index, Index]:
    """Connected components of one plane.

    Parameters
    ----------
    plane
        Labels (x, y).

    Returns
    -------
    tuple
        Each voxel's component (x, y), of which 0 is background, and the components' areas (n,).
    """
    starts = np.ones(plane.shape, bool)
    np.not_equal(plane[:, 1:], plane[:, :-1], out=starts[:, 1:])
    run = (np.cumsum(starts.reshape(-1)) - 1).reshape(plane.shape)  # runs along y, also of background
    touching = (plane[1:] == plane[:-1]) & (plane[1:] != 0)
    touching[:, 1:] &= starts[1:, 1:] | starts[:-1, 1:]  # once for each pair of runs
    of_run = joined(int(run[-1, -1]) + 1, run[:-1][touching], run[1:][touching])
    values = plane[starts]
    roots = (of_run == np.arange(len(of_run))) & (values != 0)
    number = np.cumsum(roots) * roots
    component: Index = number[of_run][run]
    return component, np.bincount(component.reshape(-1), minlength=int(roots.sum()) + 1)


def joined(count: int, first: Index, second: Index) -> Index:
    """Smallest node to which each of ``count`` nodes is connected, by edges from ``first`` to ``second``."""
    root = np.arange(count)
    while True:
        a, b = root[first], root[second]
        open_edges = a != b
        if not open_edges.any():
            return root
        first, second, a, b = first[open_edges], second[open_edges], a[open_edges], b[open_edges]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(shorter := root[root], root):
            root = shorter


def _grown(before: _Plane | None, labels: Labels) -> tuple[_Plane, Index]:
    """The next plane with its groups, and the group into which each group of the plane before grows (-1: none)."""
    component, areas = plane_components(labels)
    earlier = 0 if before is None else len(before.sizes)
    first = second = np.empty(0, np.int64)
    if before is not None:
        touching = (labels == before.labels) & (labels != 0)
        pairs = np.unique(before.group[touching] * len(areas) + component[touching])
        first, second = pairs // len(areas), earlier + pairs % len(areas)
    root = joined(earlier + len(areas), first, second)
    sizes = np.concatenate([before.sizes if before is not None else [], areas]).astype(np.int64)
    totals = np.bincount(root, weights=sizes, minlength=len(root)).astype(np.int64)
    alive = np.unique(root[earlier:])  # of this plane's background first, unless an earlier group's number is smaller
    number = np.full(len(root), -1)
    number[alive] = np.arange(len(alive))
    group_of_component = number[root[earlier:]]
    plane = _Plane(labels, group_of_component[component], group_of_component, totals[alive])
    return plane, number[root[:earlier]]
