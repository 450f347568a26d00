"""Grid, patches and levels of a network from the spacings and shapes of a data set, by the rules of nnU-Net's planner.

Isensee et al., Nature Methods 18, 203 (2021), as in nnU-Net 2.8.1 (``default_experiment_planner.py``,
``network_topology.py``); its tests here compare with the same functions written there. What differs: nnU-Net shrinks
the patch until an estimate of a graphics card's memory is met. Here all patches on that way are listed, and the first
whose bytes fit under the ceiling is trained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np

from apps.imaging.volumes.volume import Shape

Spacing = tuple[float, float, float]

ANISOTROPIC = 3
"""A grid is anisotropic if voxels are more than so many times as long along one axis as along the others, and the image
has less than this part of the others' voxels there."""
THIN_PERCENTILE = 10
"""Percentile of the spacings along the coarsest axis of such a grid; along all others it is the median."""
LEAST_EDGE = 4
"""Voxels along an axis of the coarsest level, at least, if the axis is halved."""
LARGEST_PATCH = 128**3
"""Voxels of the first patch, at most: nnU-Net's usual one on a card of 8 GB."""
NEXT_PATCH = 0.8
"""A listed patch has at most this share of the voxels of the one before."""
FEWEST_LEVELS = 3
"""DynUNet has no fewer."""
LARGEST_WIDTH = 320
"""Features of a level, at most."""


@dataclass(frozen=True, slots=True)
class Topology:
    """A patch, and the levels of a network for it."""

    patch: Shape
    strides: tuple[Shape, ...]
    """From each level's grid to the next coarser one; the first is 1 along each axis."""
    kernels: tuple[Shape, ...]


def target_spacing(spacings: Sequence[Spacing], shapes: Sequence[Shape]) -> Spacing:
    """Size of the network's voxels in millimetres: the median, and less along the coarsest axis of anisotropic images.

    Examples
    --------
    >>> target_spacing([(1.5, 1.5, 10.0)] * 4 + [(1.5, 1.5, 5.0)], [(200, 200, 12)] * 5)
    (1.5, 1.5, 7.0)
    """
    edges, sides = np.array(spacings, float), np.array(shapes, float)
    target, size = np.median(edges, 0), np.median(sides, 0)
    coarsest = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarsest]
    widest = max(target[others])
    if target[coarsest] > ANISOTROPIC * widest and size[coarsest] * ANISOTROPIC < min(size[others]):
        target[coarsest] = max(np.percentile(edges[:, coarsest], THIN_PERCENTILE), widest)
    x, y, z = (round(float(edge), 4) for edge in target)
    return x, y, z


def levels(spacing: Spacing, patch: Sequence[int]) -> Topology:
    """Levels of a network for a patch, which is enlarged so that each can be halved.

    An axis is halved while its voxels are less than twice as long as the shortest, and the level below has at least
    ``LEAST_EDGE`` voxels along it. Its kernel is 1 until then, and 3 from there on.
    """
    edges, sides, kernel = list(spacing), list(patch), [1, 1, 1]
    strides, kernels = [(1, 1, 1)], []
    while halved := _halved(edges, sides):
        shortest = min(edges)
        kernel = [3 if edge / shortest < 2 else size for edge, size in zip(edges, kernel, strict=True)]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        stride = [2 if axis in halved else 1 for axis in range(3)]
        strides.append((stride[0], stride[1], stride[2]))
        edges = [edge * step for edge, step in zip(edges, stride, strict=True)]
        sides = [ceil(side / step) for side, step in zip(sides, stride, strict=True)]
    kernels.append((3, 3, 3))
    steps = [prod(stride[axis] for stride in strides) for axis in range(3)]
    x, y, z = (ceil(side / step) * step for side, step in zip(patch, steps, strict=True))
    return Topology((x, y, z), tuple(strides), tuple(kernels))


def _halved(edges: Sequence[float], sides: Sequence[int]) -> list[int]:
    """Axes that the next level halves; none at the coarsest."""
    long = [axis for axis in range(3) if sides[axis] >= 2 * LEAST_EDGE]
    shortest = min((edges[axis] for axis in long), default=0.0)
    halved = [axis for axis in long if edges[axis] / shortest < 2]
    alone = len(halved) == 1 and sides[halved[0]] < 3 * LEAST_EDGE
    return [] if alone else halved


def first_patch(spacing: Spacing, median: Sequence[float]) -> list[int]:
    """The median case, or a part of it that is as long in millimetres along each axis."""
    density = 1 / np.array(spacing)
    cube = density * (LARGEST_PATCH / prod(density)) ** (1 / 3)
    return [max(1, int(min(round(side), whole))) for side, whole in zip(cube, median, strict=True)]


def topologies(spacing: Spacing, median: Sequence[float]) -> Iterator[Topology]:
    """Patches from the largest to the smallest, each with its levels.

    The axis along which a patch has the largest share of the median case is shortened, but to no less than
    ``LEAST_EDGE`` voxels.

    Parameters
    ----------
    median
        Median voxels of the cases along the model's axes at ``spacing``.
    """
    found = levels(spacing, first_patch(spacing, median))
    edge = LEAST_EDGE
    while len(found.strides) < FEWEST_LEVELS:  # thinner than any network: zeros around it
        edge *= 2
        found = levels(spacing, [max(side, edge) for side in found.patch])
    voxels, first = float("inf"), found.patch
    while len(found.strides) >= FEWEST_LEVELS:
        if prod(found.patch) <= NEXT_PATCH * voxels:
            voxels = prod(found.patch)
            yield found
        thinnest = [min(LEAST_EDGE, side) for side in first]
        long = [one for one in range(3) if found.patch[one] - _step(found, one) >= thinnest[one]]
        if not long:
            return
        axis = max(long, key=lambda one: (found.patch[one] / median[one], one))
        shorter = list(found.patch)
        # Once with this patch's multiple, and then with that of the shorter one, which may have fewer levels.
        shorter[axis] -= _step(found, axis)
        shorter[axis] = found.patch[axis] - _step(levels(spacing, shorter), axis)
        before, found = found, levels(spacing, shorter)
        if prod(found.patch) >= prod(before.patch):  # another axis has grown by as much
            return


def _step(topology: Topology, axis: int) -> int:
    return prod(stride[axis] for stride in topology.strides)


def widths(first: int, count: int) -> list[int]:
    """Features of each level: twice as many on each coarser one, up to ``LARGEST_WIDTH``.

    Examples
    --------
    >>> widths(32, 6)
    [32, 64, 128, 256, 320, 320]
    """
    return [min(first * 2**level, LARGEST_WIDTH) for level in range(count)]
