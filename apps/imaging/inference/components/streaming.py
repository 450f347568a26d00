"""Choose connected components of a label volume, in memory that does not grow with the volume.

Voxels of one label that touch are one component. What decides about it, its size for example, is known only after its
last plane, so the label planes wait on disk. There are three passes:

1. forward: the components of each plane alone, and the group to which each belongs with the planes before it; a
   group's measure so far, and the group of the next plane into which it grows;
2. backward over these tables: a group is kept if it ends as one that is kept, or grows into a group that is kept;
3. forward: planes are yielded without the components of groups that are not kept.

Only the tables of two planes are in memory at a time.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.volume import Shape

PLANE_BYTES = 176
"""Bytes for each voxel of a plane in which every voxel is a component of its own (measured 168)."""
DIAGONAL_BYTES = 216
"""The same where voxels also touch by edges and corners; most are used if all voxels are one component (measured 193 to
201)."""

Labels = npt.NDArray[np.unsignedinteger]
Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Measure = Callable[[Index, int], Index]
"""A number for each of so many components of a plane, component 0 among them; those of a group are added up."""


def areas(component: Index, count: int) -> Index:
    """Voxels of each component."""
    return np.bincount(component.reshape(-1), minlength=count)


class Ended(AbstractContextManager["Ended"]):
    """The choice of groups that end.

    A subclass may look at all that end before it decides; ``seen`` is called in the order of the planes, ``kept`` in
    the opposite one.
    """

    def __exit__(self, *error: object) -> None:
        pass

    def seen(self, number: int, values: Labels, measures: Index, ended: Mask) -> None:
        """Look at the groups of plane ``number``: their labels, their measures, and whether they end there."""

    def kept(self, number: int, measures: Index) -> Mask:
        """Whether each group of plane ``number`` is kept if it ends there."""
        raise NotImplementedError


def kept_components(
    slabs: Iterable[Labels], scratch: Path, choice: Ended, *, measure: Measure = areas, diagonal: bool = False
) -> Iterator[Labels]:
    """Make components that are not kept background.

    Parameters
    ----------
    slabs
        Label planes, (x, y, k); all are consumed before the first is yielded.
    scratch
        Directory on the disk where they wait.
    diagonal
        True if voxels also touch by edges and corners.

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
                plane, successor = _grown(before, labels, measure, diagonal=diagonal)
                if before is not None:
                    choice.seen(len(tables), before.values, before.measures, successor < 0)
                    tables.append(before, successor)
                before = plane
        if before is None:
            return
        last = np.full(len(before.measures), -1)
        choice.seen(len(tables), before.values, before.measures, last < 0)
        tables.append(before, last)
        shape, dtype = before.labels.shape, before.labels.dtype
        tables.decide(choice)
        planes.seek(0)
        for number in range(len(tables)):
            labels = np.frombuffer(planes.read(shape[0] * shape[1] * dtype.itemsize), dtype).reshape(shape)
            component, _ = plane_components(labels, diagonal=diagonal)
            yield np.where(tables.kept(number)[component], labels, dtype.type(0))[..., None]


@dataclass(frozen=True, slots=True)
class _Plane:
    """A plane of labels, and the groups to which its components belong with the planes before it."""

    labels: Labels
    group: Index
    """By voxel."""
    group_of_component: Index
    measures: Index
    """Of each group so far."""
    values: Labels
    """Label of each group."""


class _Tables(AbstractContextManager["_Tables"]):
    """Tables of all planes, on disk: the groups of a plane's components, their measures and successors, what is
    kept."""

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
        self._entries.append((self._stream.tell(), len(plane.group_of_component), len(plane.measures)))
        for values in (plane.group_of_component, plane.measures, successor):
            self._stream.write(values.astype(np.int64).data)

    def decide(self, choice: Ended) -> None:
        """Keep groups that end as ``choice`` has it or grow into a kept group, from the last plane to the first."""
        after = np.empty(0, bool)
        for number in reversed(range(len(self._entries))):
            offset, components, groups = self._entries[number]
            self._stream.seek(offset)
            values = np.frombuffer(self._stream.read(8 * (components + 2 * groups)), np.int64)
            group_of_component, measures, successor = np.split(values, [components, components + groups])
            keep = choice.kept(number, measures)
            grows = successor >= 0
            keep[grows] = after[successor[grows]]
            self._stream.seek(offset)
            self._stream.write(keep[group_of_component].data)  # overwrites the groups
            after = keep

    def kept(self, number: int) -> Mask:
        """Mask of the components of a plane that are kept."""
        offset, components, _ = self._entries[number]
        self._stream.seek(offset)
        return np.frombuffer(self._stream.read(components), np.bool_)


def components_bytes(shape: Shape, *, diagonal: bool = False) -> int:
    """Bytes that ``kept_components`` takes at most, of a volume of ``shape``."""
    return (DIAGONAL_BYTES if diagonal else PLANE_BYTES) * shape[0] * shape[1]


def plane_components(plane: Labels, *, diagonal: bool = False) -> tuple[Index, Index]:
    """Connected components of one plane.

    Parameters
    ----------
    plane
        Labels (x, y).
    diagonal
        True if voxels also touch by corners.

    Returns
    -------
    tuple
        Each voxel's component (x, y), of which 0 is background, and the index of each component's first voxel in the
        flattened plane; that of component 0 is any.
    """
    starts = np.ones(plane.shape, bool)
    np.not_equal(plane[:, 1:], plane[:, :-1], out=starts[:, 1:])
    run = (np.cumsum(starts.reshape(-1)) - 1).reshape(plane.shape)  # runs along y, also of background
    touching = (plane[1:] == plane[:-1]) & (plane[1:] != 0)
    touching[:, 1:] &= starts[1:, 1:] | starts[:-1, 1:]  # once for each pair of runs
    first, second = [run[:-1][touching]], [run[1:][touching]]
    if diagonal:
        for upper, lower in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
            touching = (plane[1:, lower] == plane[:-1, upper]) & (plane[1:, lower] != 0)
            first.append(run[:-1, upper][touching])
            second.append(run[1:, lower][touching])
    of_run = joined(int(run[-1, -1]) + 1, np.concatenate(first), np.concatenate(second))
    places = np.flatnonzero(starts)
    roots = (of_run == np.arange(len(of_run))) & (plane.reshape(-1)[places] != 0)
    number = np.cumsum(roots) * roots
    component: Index = number[of_run][run]
    return component, np.concatenate([[0], places[roots]])


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


def _grown(before: _Plane | None, labels: Labels, measure: Measure, *, diagonal: bool) -> tuple[_Plane, Index]:
    """The next plane with its groups, and the group into which each group of the plane before grows (-1: none)."""
    component, places = plane_components(labels, diagonal=diagonal)
    measures = measure(component, len(places))
    earlier = 0 if before is None else len(before.measures)
    first = second = np.empty(0, np.int64)
    if before is not None:
        pairs = np.unique(np.concatenate([*_pairs(before, labels, component, len(places), diagonal=diagonal)]))
        first, second = pairs // len(places), earlier + pairs % len(places)
    root = joined(earlier + len(places), first, second)
    both = np.concatenate([before.measures if before is not None else [], measures]).astype(np.int64)
    totals = np.bincount(root, weights=both, minlength=len(root)).astype(np.int64)
    alive = np.unique(root[earlier:])  # of this plane's background first, unless an earlier group's number is smaller
    number = np.full(len(root), -1)
    number[alive] = np.arange(len(alive))
    group_of_component = number[root[earlier:]]
    values = np.zeros(len(alive), labels.dtype)
    values[group_of_component[1:]] = labels.reshape(-1)[places[1:]]
    plane = _Plane(labels, group_of_component[component], group_of_component, totals[alive], values)
    return plane, number[root[:earlier]]


def _pairs(before: _Plane, labels: Labels, component: Index, count: int, *, diagonal: bool) -> Iterator[Index]:
    """Group of the plane before, times ``count``, plus component of this one, where the two touch."""
    steps = (-1, 0, 1) if diagonal else (0,)
    for x in steps:
        for y in steps:
            here, there = _shifted(x, y), _shifted(-x, -y)
            touching = (labels[here] == before.labels[there]) & (labels[here] != 0)
            found = before.group[there][touching] * count + component[here][touching]
            yield np.unique(found) if diagonal else found


def _shifted(x: int, y: int) -> tuple[slice, slice]:
    along = {-1: slice(None, -1), 0: slice(None), 1: slice(1, None)}
    return along[x], along[y]
