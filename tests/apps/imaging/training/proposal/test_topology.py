"""Grid, patches and levels by nnU-Net's rules, against what its own planner answers."""

from itertools import pairwise
from math import prod

import pytest

from apps.imaging.training.proposal.topology import LARGEST_PATCH, levels, target_spacing, topologies

OF_NNUNET = [
    ((1, 1, 1), (36, 50, 35), (40, 56, 40), "222 222 222", "333 333 333 333"),
    ((1.5625, 1.5625, 10), (237, 208, 9), (256, 224, 10), "221 221 222 221 221", "331 331 333 333 333 333"),
    ((0.79, 0.79, 2.5), (192, 192, 48), (192, 192, 48), "221 222 222 222 221", "331 333 333 333 333 333"),
    ((3, 1, 1), (20, 128, 128), (20, 128, 128), "122 222 222 122 122", "133 333 333 333 333 333"),
    ((1, 1, 1), (13, 9, 7), (14, 10, 7), "221", "333 333"),
    ((0.6, 0.6, 6), (320, 320, 20), (320, 320, 20), "221 221 221 222 222 221", "331 331 331 333 333 333 333"),
    ((5, 0.7, 5), (30, 240, 30), (32, 256, 32), "121 121 222 222 222", "131 131 333 333 333 333"),
]
"""Spacing, patch; patch, strides and kernels by ``get_pool_and_conv_props(spacing, patch, 4, 999999)`` of nnU-Net 2.8.1
(``nnunetv2/experiment_planning/experiment_planners/network_topology.py``)."""


def triples(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, one)) for one in text.split())


@pytest.mark.parametrize(("spacing", "patch", "padded", "strides", "kernels"), OF_NNUNET)
def test_levels_are_those_of_nnunet(
    spacing: tuple[float, float, float], patch: tuple[int, int, int], padded: object, strides: str, kernels: str
) -> None:
    found = levels(spacing, patch)
    assert found.patch == padded
    assert found.strides == ((1, 1, 1), *triples(strides))
    assert found.kernels == triples(kernels)


def test_the_coarsest_axis_of_anisotropic_images_gets_a_finer_grid() -> None:
    # numpy.percentile(..., 10) of 5, 10, 10, 10, 10 is 7, as nnU-Net's determine_fullres_target_spacing takes it
    thick = [(1.5, 1.5, 10.0)] * 4 + [(1.5, 1.5, 5.0)]
    assert target_spacing(thick, [(200, 200, 12)] * 5) == (1.5, 1.5, 7.0)
    assert target_spacing(thick, [(200, 200, 80)] * 5) == (1.5, 1.5, 10.0)  # as many voxels as elsewhere: the median
    assert target_spacing([(1.5, 1.5, 4.0)] * 5, [(200, 200, 12)] * 5) == (1.5, 1.5, 4.0)  # less than threefold
    # Not finer than along the other axes.
    assert target_spacing([(2.0, 2.0, 7.0)] * 5 + [(2.0, 2.0, 1.0)] * 4, [(300, 300, 12)] * 9)[2] == 2.0


@pytest.mark.parametrize(
    ("spacing", "median", "first"),
    [
        ((1, 1, 1), (36, 50, 35), (40, 56, 40)),
        ((0.7, 0.7, 0.7), (320, 320, 280), (128, 128, 128)),
        ((1.5, 1.5, 10), (200, 200, 12), (224, 224, 12)),
        ((1, 5, 5), (9, 9, 9), None),
        ((1, 1, 1), (3, 200, 2), None),
    ],
)
def test_patches_shrink_to_the_smallest_network(
    spacing: tuple[float, float, float], median: tuple[int, int, int], first: object
) -> None:
    found = list(topologies(spacing, median))
    assert first in (None, found[0].patch) and prod(found[0].patch) <= 1.3 * LARGEST_PATCH
    voxels = [prod(one.patch) for one in found]
    assert all(small <= 0.8 * large for large, small in pairwise(voxels))
    assert voxels[-1] < 12_000
    for one in found:
        assert len(one.strides) == len(one.kernels) >= 3
        assert one == levels(spacing, one.patch)  # nothing is padded
