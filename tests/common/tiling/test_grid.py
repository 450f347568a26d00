"""Tile positions and weights against MONAI's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.tiling.grid import TileGrid, count, even_starts, importance, starts

SHAPES = [
    ((100, 90, 80), (40, 32, 48)),
    ((35, 50, 36), (40, 56, 40)),
    ((96, 96, 97), (96, 96, 96)),
    ((7, 64, 9), (8, 8, 8)),
]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
@pytest.mark.parametrize(("shape", "tile"), SHAPES)
def test_positions_are_monais(shape: tuple[int, int, int], tile: tuple[int, int, int], overlap: float) -> None:
    utils = pytest.importorskip("monai.data.utils")
    from monai.inferers.utils import _get_scan_interval

    grid = TileGrid(shape, tile, overlap)
    interval = _get_scan_interval(grid.padded, tile, 3, (overlap,) * 3)
    expected = {tuple(s.start for s in slices) for slices in utils.dense_patch_slices(grid.padded, tile, interval)}
    assert len(grid) == len(expected)
    assert set(grid) == expected
    assert [z for *_, z in grid] == sorted(z for *_, z in grid)


@pytest.mark.parametrize("tile", [(96, 96, 96), (8, 16, 24), (5, 7, 3)])
@pytest.mark.parametrize("weighting", ["gaussian", "constant"])
def test_weights_are_monais(tile: tuple[int, int, int], weighting: str) -> None:
    utils = pytest.importorskip("monai.data.utils")
    expected = utils.compute_importance_map(tile, mode=weighting, sigma_scale=0.125).numpy()
    found = importance(tile, weighting)  # type: ignore[arg-type]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_flipped_axes_count_from_the_far_end() -> None:
    plain, flipped = (
        TileGrid((110, 9, 20), (40, 8, 31), 0.25),
        TileGrid((110, 9, 20), (40, 8, 31), 0.25, (True, False, True)),
    )
    assert plain.starts(0) == (0, 30, 60, 70)
    assert flipped.starts(0) == (0, 10, 40, 70)
    assert (plain.before, flipped.before) == ((0, 0, 5), (0, 0, 6))


def test_a_tile_larger_than_the_volume_starts_at_zero() -> None:
    assert starts(5, 8, 0.5) == (0,)


@given(size=st.integers(1, 400), tile=st.integers(1, 130), overlap=st.floats(0, 0.95), even=st.booleans())
def test_tiles_are_counted_as_they_are_placed(size: int, tile: int, overlap: float, even: bool) -> None:
    place = even_starts if even else starts
    assert count(size, tile, overlap, even=even) == len(place(size, tile, overlap))


def test_counting_lists_nothing() -> None:
    assert len(TileGrid((10, 10, 10**10), (5, 5, 5), 0.0)) == 2 * 2 * 2 * 10**9


def test_tiles_and_weights_are_nnunets() -> None:
    from scipy.ndimage import gaussian_filter

    grid = TileGrid((110, 64, 30), (64, 64, 40), 0.5, even=True)
    assert [grid.starts(axis) for axis in range(3)] == [(0, 23, 46), (0,), (0,)]
    tile = (20, 56, 41)
    point = np.zeros(tile)
    point[tuple(size // 2 for size in tile)] = 1
    expected = gaussian_filter(point, [size / 8 for size in tile], mode="constant")
    expected = (10 * expected / expected.max()).astype(np.float16)
    expected[expected == 0] = expected[expected > 0].min()
    np.testing.assert_array_equal(importance(tile, "half"), expected.astype(np.float32))
