"""Outlines along voxel edges, filled again: the same mask, with holes in holes and voxels that touch at corners."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.imaging.dicom.writing import contours
from apps.imaging.dicom.writing.contours import TooRagged, outlines
from tests.apps.imaging.dicom.rasters import filled


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_filled_again_it_is_the_mask(rows: int, columns: int, density: float, seed: int) -> None:
    from scipy import ndimage

    mask = np.random.default_rng(seed).random((rows, columns)) < density
    found = outlines(mask)
    parts = [filled(points, mask.shape) for points in found]
    np.testing.assert_array_equal(np.sum(parts, axis=0) if parts else np.zeros(mask.shape), mask)  # none twice
    numbered, count = ndimage.label(mask)
    assert len(parts) == count
    for part in parts:
        assert len(np.unique(numbered[part])) == 1


def test_a_square_has_four_corners() -> None:
    mask = np.zeros((6, 8), bool)
    mask[2:5, 3:7] = True
    (points,) = outlines(mask)
    assert sorted(map(tuple, points.tolist())) == [(3, 2), (3, 5), (7, 2), (7, 5)]


def test_holes_go_the_other_way_round() -> None:
    """Also where the filling rule counts windings, a hole is outside."""
    mask = np.ones((9, 9), bool)
    mask[2:7, 2:7] = False
    mask[4, 4] = True
    ring, island = outlines(mask)
    assert len(island) == 4 and len(ring) == 4 + 4 + 3
    x, y = ring.T
    assert abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2 == 81 - 25


def test_noise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contours, "MOST_CORNERS", 500)
    with pytest.raises(TooRagged):
        outlines(np.random.default_rng(0).random((40, 40)) < 0.5)
    assert outlines(np.zeros((4, 4), bool)) == []
