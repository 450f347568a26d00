"""From finished blocks to label planes: the numbers of the whole volume in memory, in the priced bytes."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.imaging.inference.labeling import resampling
from apps.imaging.inference.labeling.decision import LogitsToLabels, label_bytes
from apps.imaging.inference.labeling.planes import LabelPlanes, row_depth
from apps.imaging.inference.labeling.resampling import InverseResampler, back_bytes, piece_bytes, slab_bytes
from apps.imaging.volumes.geometry import resample
from common.tiling.blend import Block, BoundedBlend
from common.tiling.grid import TileGrid, importance
from tests.common.tiling.grids import grids


def blended(grid: TileGrid, channels: int, seed: int = 0) -> Iterator[Block]:
    """A blend of noise."""
    random = np.random.default_rng(seed)
    with BoundedBlend(grid.shape, grid.tile, grid.overlap, channels, importance(grid.tile), flips=grid.flips) as blend:
        for index in range(len(grid)):
            yield from blend.add(index, random.standard_normal((channels, *grid.tile), np.float32))


@settings(max_examples=40, deadline=None)
@given(
    grid=grids(size=24, tile=14, least=2, overlaps=(0.0, 0.25, 0.5), most=200),
    shape=st.none() | st.tuples(*[st.integers(1, 40)] * 3),
    seed=st.integers(0, 99),
    slab=st.sampled_from([1, 4_000, resampling.SLAB_BYTES]),
)
def test_labels_on_the_files_grid_are_those_of_the_whole_volume(
    grid: TileGrid, shape: tuple[int, int, int] | None, seed: int, slab: int
) -> None:
    """Whatever tiles, spacing and orientation: 0 labels differ from resampling the whole volume of values."""
    have, channels = grid.shape, 3
    shape = shape or have
    values = np.empty((channels, *have), np.float32)
    for block in blended(grid, channels, seed):
        place = tuple(slice(a, b) for a, b in zip(block.low, block.high, strict=True))
        values[(slice(None), *place)] = block.values
    whole = np.stack([_resample(channel, shape) for channel in values])
    maker = LogitsToLabels(range(channels))
    back = InverseResampler(channels, have, shape, grid.tile[2]) if have != shape else lambda block: [block]
    planes = LabelPlanes(shape, row_depth(grid, shape), maker.dtype)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "SLAB_BYTES", slab)
        for piece in (piece for block in blended(grid, channels, seed) for piece in back(block)):
            found += [labels.copy() for labels in planes.add(piece.low, maker(piece.values), last=piece.last)]
    np.testing.assert_array_equal(np.concatenate(found, axis=2), whole.argmax(axis=0))


def _resample(values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Axes in the order of ``InverseResampler``, for equal rounding; ``resample`` agrees within 1e-5."""
    from apps.imaging.volumes.geometry import LinearInterpolation

    result = values
    for axis in (2, 0, 1):
        result = LinearInterpolation.between(values.shape[axis], shape[axis])(result, axis)
    np.testing.assert_allclose(result, resample(values, shape), atol=1e-5)
    return result


@pytest.mark.parametrize("head", [False, True])
def test_labels_are_the_argmax(head: bool) -> None:
    random = np.random.default_rng(3)
    values = random.standard_normal((6, 33, 40, 5)).astype(np.float32)
    weight, bias = random.standard_normal((9, 6)).astype(np.float32), random.standard_normal(9).astype(np.float32)
    numbers = [0, 3, 4, 7, 500, 12, 13, 14, 15] if head else [0, 1, 2, 3, 4, 5]
    maker = LogitsToLabels(numbers, (weight, bias) if head else None)
    logits = np.einsum("cf,fxyz->cxyz", weight, values) + bias[:, None, None, None] if head else values
    found = maker(values)
    assert found.dtype == (np.uint16 if head else np.uint8)
    assert (found != np.asarray(numbers)[logits.argmax(axis=0)]).mean() < 1e-4
    assert maker(values[:, :, :0]).shape == (33, 0, 5)  # a block in which no voxel of the file lies
    tied = LogitsToLabels([0, 1, 2])(np.zeros((3, 2, 2, 1), np.float32))
    assert not tied.any()


def test_a_subset_keeps_its_own_voxels_only() -> None:
    values = np.random.default_rng(5).standard_normal((4, 9, 8, 7)).astype(np.float32)
    whole, some = LogitsToLabels([0, 1, 2, 3])(values), LogitsToLabels([0, 1, 2, 3], kept=[0, 2])(values)
    np.testing.assert_array_equal(some, np.where(whole == 2, 2, 0))


@pytest.mark.parametrize("head", [False, True])
def test_prices_of_the_last_steps_hold(head: bool) -> None:
    """Bytes that NumPy allocates stay within the priced bytes, and near them."""
    grid, shape, channels = TileGrid((90, 80, 64), (48, 48, 32), 0.25), (270, 220, 80), 8
    classes = 20 if head else channels
    weights = np.ones((classes, channels), np.float32), np.zeros(classes, np.float32)
    maker = LogitsToLabels(range(classes), weights if head else None)
    blocks = [Block(block.low, block.values.copy(), block.last) for block in blended(grid, channels)]
    tracemalloc.start()
    planes = LabelPlanes(grid.shape, row_depth(grid, grid.shape), maker.dtype)
    for block in blocks:
        list(planes.add(block.low, maker(block.values), last=block.last))
    used = tracemalloc.get_traced_memory()[1]
    priced = label_bytes(grid, grid.shape, classes, channels, maker.dtype, copied=head)
    assert used <= priced.resident + priced.transient <= used * 1.6
    del planes
    tracemalloc.reset_peak()
    base = tracemalloc.get_traced_memory()[0]
    back = InverseResampler(channels, grid.shape, shape, grid.tile[2])
    for block in blocks:
        for piece in back(block):
            assert piece.values.nbytes <= piece_bytes(grid, shape, channels)
            del piece
    used = tracemalloc.get_traced_memory()[1] - base
    tracemalloc.stop()
    price = back_bytes(grid, shape, channels)
    assert used <= price.resident + slab_bytes(grid, channels) + price.transient <= used * 1.25
