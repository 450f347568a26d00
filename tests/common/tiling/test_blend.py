"""The blend against a full-volume accumulator, and its bytes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.tiling import blend
from common.tiling.blend import BoundedBlend, blend_footprint
from common.tiling.grid import TileGrid, importance
from common.tiling.spill import SpillFile
from tests.common.tiling.grids import grids
from tests.messages import refused

Array = npt.NDArray[np.float32]


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


class Watched(BoundedBlend):
    """Knows what the carried cells hold at most, with the one that is worked on."""

    most = 0

    def _load_cell(self, cell: blend.Cell, shape: tuple[int, ...]) -> Array:
        taken = super()._load_cell(cell, shape)
        self.most = max(self.most, self.resident_bytes + taken.nbytes)
        return taken

    def _store_cell(self, part: blend._Part, sums: Array) -> None:
        self.most = max(self.most, self.resident_bytes + sums.nbytes)
        super()._store_cell(part, sums)


@settings(max_examples=80, deadline=None)
@given(
    grid=grids(size=40, tile=20, overlaps=(0.0, 0.1, 0.25, 0.5, 0.75), most=500),
    channels=st.integers(1, 4),
    weighting=st.sampled_from(["gaussian", "constant"]),
    spill=st.sampled_from(["memory", "rows", "columns"]),
    seed=st.integers(0, 2**32 - 1),
)
@example(grid=TileGrid((3, 1, 15), (2, 1, 5), 0.1), channels=1, weighting="gaussian", spill="columns", seed=0)
@example(grid=TileGrid((4, 2, 29), (3, 1, 6), 0.1), channels=1, weighting="gaussian", spill="columns", seed=0)
def test_bit_for_bit_the_full_accumulator(  # type: ignore[no-untyped-def]
    tmp_path_factory, grid, channels, weighting, spill, seed
) -> None:
    shape, tile = grid.shape, grid.tile
    random = np.random.default_rng(seed)
    tiles = [random.standard_normal((channels, *tile), np.float32) for _ in range(len(grid))]
    weights = importance(tile, weighting)
    found = np.full((channels, *shape), np.nan, np.float32)
    scratch = tmp_path_factory.getbasetemp()
    planes = 0
    with Watched(shape, tile, grid.overlap, channels, weights, flips=grid.flips, spill=spill, scratch=scratch) as blend:
        for index, values in enumerate(tiles):
            for block in blend.add(index, values.copy()):
                place = tuple(slice(a, b) for a, b in zip(block.low, block.high, strict=True))
                assert np.isnan(found[(slice(None), *place)]).all(), "finished twice"
                found[(slice(None), *place)] = block.values
                if block.last:
                    planes = block.high[2]
                    assert not np.isnan(found[..., :planes]).any() and np.isnan(found[..., planes:]).all()
        assert planes == shape[2] and blend.resident_bytes == 0
        np.testing.assert_array_equal(found, reference(grid, tiles, weights))
        price = blend_footprint(grid, channels, spill=spill)
        largest = 4 * (channels + 1) * np.prod(tile)
        assert blend.most <= price.memory + price.transient <= blend.most + (largest if spill != "memory" else 0)
        # Holes of the file are used again if they are large enough; in the smallest volumes few are.
        assert (blend._spill.size if blend._spill else 0) <= 2 * price.disk + 2 * largest


def test_the_length_of_the_volume_costs_nothing() -> None:
    for spill in ("memory", "rows", "columns"):
        prices = [blend_footprint(TileGrid((64, 64, z), (32, 32, 32), 0.5), 5, spill=spill) for z in (160, 16_000)]
        assert prices[0] == prices[1]


def test_padding_is_not_carried() -> None:
    """Most of a tile is padding in thin volumes."""
    thin, thick = (TileGrid((167, 167, planes), (64, 64, 64), 0.25) for planes in (13, 64))
    for spill in ("memory", "rows", "columns"):
        less, more = blend_footprint(thin, 14, spill=spill), blend_footprint(thick, 14, spill=spill)
        assert 64 * less.memory == 13 * more.memory and 64 * less.disk == 13 * more.disk


def test_118_classes_on_a_large_plane() -> None:
    """512 x 512 x 1000 voxels: features need less memory than logits, and the overlap along z can be on disk."""
    grid = TileGrid((512, 512, 1000), (96, 96, 96), 0.25)
    assert len(grid) == 686
    logits, features = blend_footprint(grid, 118), blend_footprint(grid, 32)
    spilled, most = blend_footprint(grid, 32, "rows"), blend_footprint(grid, 32, "columns")
    assert logits.memory > 3 * features.memory > 0 and features.memory < 2.1e9
    assert spilled.memory + spilled.transient < 330e6 and 0.8e9 < spilled.disk < 2.2e9
    assert most.memory + most.transient < 150e6 and most.disk == spilled.disk


def test_tiles_out_of_order_are_refused() -> None:
    blend = BoundedBlend((8, 8, 8), (4, 4, 4), 0.5, 1, importance((4, 4, 4)))
    with refused(ValueError, "tile 0"):
        blend.add(1, np.zeros((1, 4, 4, 4), np.float32))


def test_spilled_places_are_used_again(tmp_path: Path) -> None:
    spill = SpillFile(tmp_path)
    arrays = {number: np.full((3, 5), number, np.float32) for number in range(6)}
    for number in range(3):
        spill.write(number, arrays[number])
    for number in range(3):
        np.testing.assert_array_equal(spill.read(number, (3, 5)), arrays[number])
        spill.write(number + 3, arrays[number + 3])
    assert spill.size == 3 * arrays[0].nbytes and list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(spill.read(4, (3, 5)), arrays[4])
    spill.close()


@pytest.mark.parametrize("spill", ["memory", "rows", "columns"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
def test_the_bound_of_huge_grids_is_one(monkeypatch: pytest.MonkeyPatch, spill: blend.Spilled, overlap: float) -> None:
    grids = [TileGrid(shape, (16, 12, 8), overlap) for shape in ((40, 50, 60), (16, 100, 30), (70, 12, 8), (5, 90, 9))]
    exact = [blend_footprint(grid, 3, spill) for grid in grids]
    monkeypatch.setattr(blend, "PRICED_TILES", 0)
    blend_footprint.cache_clear()
    for grid, price in zip(grids, exact, strict=True):
        bound = blend_footprint(grid, 3, spill)
        assert price.memory <= bound.memory and price.disk <= bound.disk and price.transient <= bound.transient
    blend_footprint.cache_clear()


ABSURD = """
import resource
from common.tiling.blend import blend_footprint
from common.tiling.grid import TileGrid
resource.setrlimit(resource.RLIMIT_DATA, (256 << 20, 256 << 20))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for spill in ("memory", "rows", "columns"):
    for side in (10_000, 65_535):
        price = blend_footprint(TileGrid((side, side, side), (8, 8, 4), 0.5), 3, spill)
        assert price.memory + price.disk >= 4 * 4 * side * side * 4
"""


def test_an_absurd_header_is_priced_in_little_time_and_memory() -> None:
    """68 billion tiles and more: neither they nor their edges are listed."""
    done = subprocess.run([sys.executable, "-c", ABSURD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_large_grids_of_real_volumes_are_priced_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = TileGrid((512, 512, 2000), (32, 32, 32), 0.75)
    exact = blend_footprint(grid, 4, "rows")
    assert len(grid) > 500_000
    monkeypatch.setattr(blend, "PRICED_TILES", 0)
    blend_footprint.cache_clear()
    assert exact.memory < 0.95 * blend_footprint(grid, 4, "rows").memory
    blend_footprint.cache_clear()
