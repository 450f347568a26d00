"""``--remove-small``: connected parts below a volume are taken out, in memory that no volume's size changes.

A part is what touches by voxel faces and has one label. Whether it is small is known only when all of it was seen, so
the label planes wait on disk. They are gone through three times:

1. forward: each plane's own parts, and to which group of the next plane each group grows, with its size so far;
2. backward over those tables: a group is kept if it ends large, or grows into a group that is kept;
3. forward: planes are given out without the parts of groups that are not kept.

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
"""For each voxel of a plane, where every voxel is a part of its own (measured 157)."""

Labels = npt.NDArray[np.unsignedinteger]
Index = npt.NDArray[np.int64]


def least_voxels(millilitres: float, affine: Affine) -> int:
    """Voxels below which a part has less than so many millilitres."""
    voxel = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    return int(np.ceil(millilitres / voxel - 1e-9))


def without_small(slabs: Iterable[Labels], least: int, scratch: Path) -> Iterator[Labels]:
    """The same planes (x, y, 1) in order, parts of fewer than ``least`` voxels made background.

    Parameters
    ----------
    slabs
        Label planes, (x, y, k); all are taken in before the first is given out.
    scratch
        Directory on the disk where they wait.
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
            part, _ = plane_parts(labels)
            yield np.where(tables.kept(number)[part], labels, dtype.type(0))[..., None]


@dataclass(frozen=True, slots=True)
class _Plane:
    """A plane of labels, each voxel's group, each part's group, and the groups' voxels so far."""

    labels: Labels
    group: Index
    group_of_part: Index
    sizes: Index


class _Tables(AbstractContextManager["_Tables"]):
    """On disk for each plane: the groups of its parts, the groups' sizes, what they grow into, and what is kept."""

    def __init__(self, scratch: Path) -> None:
        self._stream = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115
        self._places: list[tuple[int, int, int]] = []

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def __len__(self) -> int:
        return len(self._places)

    def append(self, plane: _Plane, successor: Index) -> None:
        """The next plane's table; ``successor`` of each group is a group of the plane after it, or -1."""
        self._places.append((self._stream.tell(), len(plane.group_of_part), len(plane.sizes)))
        for values in (plane.group_of_part, plane.sizes, successor):
            self._stream.write(values.astype(np.int64).data)

    def decide(self, least: int) -> None:
        """From the last plane to the first: what ends with ``least`` voxels or grows into what is kept."""
        after = np.empty(0, bool)
        for place, parts, groups in reversed(self._places):
            self._stream.seek(place)
            values = np.frombuffer(self._stream.read(8 * (parts + 2 * groups)), np.int64)
            group_of_part, sizes, successor = np.split(values, [parts, parts + groups])
            keep = sizes >= least
            grows = successor >= 0
            keep[grows] = after[successor[grows]]
            self._stream.seek(place)
            self._stream.write(keep[group_of_part].data)  # takes the place of the groups
            after = keep

    def kept(self, number: int) -> npt.NDArray[np.bool_]:
        """Whether each part of a plane is kept."""
        place, parts, _ = self._places[number]
        self._stream.seek(place)
        return np.frombuffer(self._stream.read(parts), np.bool_)


def components_bytes(shape: Shape) -> int:
    """What going through the planes holds at most."""
    return _PLANE_BYTES * shape[0] * shape[1]


def plane_parts(plane: Labels) -> tuple[Index, Index]:
    """Connected parts of one plane (x, y): each voxel's part, and the parts' areas; part 0 is background."""
    starts = np.ones(plane.shape, bool)
    np.not_equal(plane[:, 1:], plane[:, :-1], out=starts[:, 1:])
    run = (np.cumsum(starts.reshape(-1)) - 1).reshape(plane.shape)  # runs along y, also of background
    touching = (plane[1:] == plane[:-1]) & (plane[1:] != 0)
    touching[:, 1:] &= starts[1:, 1:] | starts[:-1, 1:]  # once for each pair of runs
    of_run = joined(int(run[-1, -1]) + 1, run[:-1][touching], run[1:][touching])
    values = plane[starts]
    roots = (of_run == np.arange(len(of_run))) & (values != 0)
    number = np.cumsum(roots) * roots
    part = number[of_run][run]
    return part, np.bincount(part.reshape(-1), minlength=int(roots.sum()) + 1)


def joined(count: int, first: Index, second: Index) -> Index:
    """The smallest of all that ``0 ... count - 1`` is connected with, by edges from ``first`` to ``second``."""
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
    """The next plane with its groups, and what each group of the plane before grows into (-1: nothing)."""
    part, areas = plane_parts(labels)
    earlier = 0 if before is None else len(before.sizes)
    first = second = np.empty(0, np.int64)
    if before is not None:
        touching = (labels == before.labels) & (labels != 0)
        pairs = np.unique(before.group[touching] * len(areas) + part[touching])
        first, second = pairs // len(areas), earlier + pairs % len(areas)
    root = joined(earlier + len(areas), first, second)
    sizes = np.concatenate([before.sizes if before is not None else [], areas]).astype(np.int64)
    totals = np.bincount(root, weights=sizes, minlength=len(root)).astype(np.int64)
    alive = np.unique(root[earlier:])  # of this plane's background first, unless an earlier group's number is smaller
    number = np.full(len(root), -1)
    number[alive] = np.arange(len(alive))
    group_of_part = number[root[earlier:]]
    return _Plane(labels, group_of_part[part], group_of_part, totals[alive]), number[root[:earlier]]
