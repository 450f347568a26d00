"""The blend against a full-volume accumulator, and its bytes."""

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from common.tiling.blend import SLAB_PLANES, BoundedBlend, blend_bytes
from common.tiling.grid import TileGrid, importance

Array = npt.NDArray[np.float32]
triple = lambda low, high: st.tuples(*[st.integers(low, high)] * 3)  # noqa: E731


def reference(grid: TileGrid, tiles: list[Array], weights: Array) -> Array:
    """The mean over the whole padded volume, cropped: what every other tool holds in memory."""
    total = np.zeros((tiles[0].shape[0], *grid.padded), np.float32)
    count = np.zeros(grid.padded, np.float32)
    for position, tile in zip(grid, tiles, strict=True):
        place = tuple(slice(p, p + t) for p, t in zip(position, grid.tile, strict=True))
        total[(slice(None), *place)] += tile * weights
        count[place] += weights
    inside = tuple(slice(b, b + s) for b, s in zip(grid.before, grid.shape, strict=True))
    return (total / count)[(slice(None), *inside)]


@settings(max_examples=150, deadline=None)
@given(
    shape=triple(1, 40),
    tile=triple(1, 20),
    overlap=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75]),
    channels=st.integers(1, 4),
    weighting=st.sampled_from(["gaussian", "constant"]),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 2**32 - 1),
)
def test_bit_for_bit_the_full_accumulator(shape, tile, overlap, channels, weighting, flips, seed) -> None:  # type: ignore[no-untyped-def]
    grid = TileGrid(shape, tile, overlap, flips)
    random = np.random.default_rng(seed)
    tiles = [random.standard_normal((channels, *tile), np.float32) for _ in range(len(grid))]
    weights = importance(tile, weighting)
    blend = BoundedBlend(shape, tile, overlap, channels, weights, flips=flips)
    found = np.full((channels, *shape), np.nan, np.float32)
    expected_start = 0
    for index, values in enumerate(tiles):
        for slab in blend.add(index, values.copy()):
            assert slab.start == expected_start
            assert 0 < slab.stop - slab.start <= SLAB_PLANES
            expected_start = slab.stop
            found[..., slab.start : slab.stop] = slab.values
    assert expected_start == shape[2]
    np.testing.assert_array_equal(found, reference(grid, tiles, weights))
    assert blend.nbytes == blend_bytes(shape, tile, channels)


def test_the_length_of_the_volume_costs_nothing() -> None:
    assert blend_bytes((64, 64, 100), (32, 32, 32), 5) == blend_bytes((64, 64, 100_000), (32, 32, 32), 5)


def test_tiles_out_of_order_are_refused() -> None:
    blend = BoundedBlend((8, 8, 8), (4, 4, 4), 0.5, 1, importance((4, 4, 4)))
    try:
        blend.add(1, np.zeros((1, 4, 4, 4), np.float32))
    except ValueError as error:
        assert "tile 0 was expected" in str(error)
    else:
        raise AssertionError("accepted")
