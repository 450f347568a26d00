"""The components of one plane, and the memory of the tables."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from apps.imaging.inference.components.filters import largest_only, without_small
from apps.imaging.inference.components.streaming import areas, components_bytes, plane_components


@pytest.mark.parametrize(("diagonal", "sizes"), [(False, [1, 1, 3, 4]), (True, [1, 4, 4])])
def test_components_of_a_plane(diagonal: bool, sizes: list[int]) -> None:
    plane = np.array([[1, 1, 0, 2], [0, 1, 2, 2], [1, 0, 2, 1]], np.uint8)
    part, places = plane_components(plane, diagonal=diagonal)
    found = areas(part, len(places))
    assert sorted(found[1:].tolist()) == sizes
    assert found[0] == 3 and part[0, 2] == 0
    assert part[0, 3] == part[2, 2] != part[0, 0]
    assert [int(part.reshape(-1)[place]) for place in places[1:]] == list(range(1, len(places)))


@pytest.mark.parametrize("diagonal", [False, True])
def test_memory_is_priced(tmp_path: Path, diagonal: bool) -> None:
    """Every voxel is a component of its own, or all of a plane are one: the worst cases."""
    shape = (160, 120, 3)
    x, y, z = np.indices(shape) % 2
    labels = (1 + x + 2 * y + 4 * z).astype(np.uint16) if not diagonal else np.ones(shape, np.uint16)
    slabs = (labels[..., k : k + 1] for k in range(shape[2]))
    tracemalloc.start()
    planes = largest_only(slabs, None, tmp_path) if diagonal else without_small(slabs, 2, tmp_path)
    assert sum(plane.shape[2] for plane in planes) == shape[2]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= components_bytes(shape, diagonal=diagonal) <= 1.5 * peak
