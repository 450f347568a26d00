"""Labels that are not interpolated are those that interpolation gives, to the voxel and in the priced bytes."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from apps.imaging.inference.labeling import agreement, resampling
from apps.imaging.inference.labeling.agreement import cell_classes, labels_of_block
from apps.imaging.inference.labeling.decision import UNDECIDED, LogitsToLabels, label_bytes
from apps.imaging.inference.labeling.planes import LabelPlanes, row_depth
from apps.imaging.inference.labeling.resampling import InverseResampler, back_bytes, slab_bytes
from apps.imaging.volumes.geometry import LinearInterpolation
from common.tiling.blend import Block
from common.tiling.grid import TileGrid

CHANNELS = 8


def blocks(shape: tuple[int, int, int], cut: int, smooth: float, seed: int, places: int | None) -> list[Block]:
    """Noise, blurred so that classes have parts, in two rows of blocks along z."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((CHANNELS, *shape)).astype(np.float32)
    values = np.stack([gaussian_filter(channel, smooth) if smooth else channel for channel in values])
    if places is not None:  # many ties
        values = np.round(values / values.std(), places).astype(np.float32)
    cuts = [(0, cut), (cut, shape[2])]
    return [Block((0, 0, a), np.ascontiguousarray(values[..., a:b]), True) for a, b in cuts if a < b]


def labelled(parts: list[Block], shape: tuple[int, int, int], file: tuple[int, int, int], **by: object) -> np.ndarray:
    """Labels of all blocks on the file's grid; ``by`` are the interpolations."""
    depth = max(block.values.shape[3] for block in parts)
    back = InverseResampler(CHANNELS, shape, file, depth, **by)  # type: ignore[arg-type]
    found = np.full(file, 255, np.uint8)
    for block in parts:
        for (x, y, z), labels, _ in labels_of_block(block, back, LogitsToLabels(range(CHANNELS))):
            width, height, planes = labels.shape
            found[x : x + width, y : y + height, z : z + planes] = labels
    return found


@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    finer=st.tuples(*[st.floats(1.0, 4.0)] * 3),
    smooth=st.sampled_from([0.0, 1.0, 2.0, 4.0]),
    places=st.sampled_from([None, 0, 1]),
    flipped=st.none() | st.booleans(),
    seed=st.integers(0, 99),
    slab=st.sampled_from([1, 6_000, resampling.SLAB_BYTES]),
)
def test_no_label_differs(
    shape: tuple[int, int, int],
    finer: tuple[float, float, float],
    smooth: float,
    places: int | None,
    flipped: bool | None,
    seed: int,
    slab: int,
) -> None:
    file = tuple(max(1, round(size * factor)) for size, factor in zip(shape, finer, strict=True))
    if flipped is None:
        axes = [LinearInterpolation.between(size, new) for size, new in zip(shape, file, strict=True)]
    else:
        axes = [
            LinearInterpolation.centred(size, new, 1 / factor, flipped=flipped)
            for size, new, factor in zip(shape, file, finer, strict=True)
        ]
    parts = blocks(shape, max(1, shape[2] // 2), smooth, seed, places)
    values = np.concatenate([block.values for block in parts], 3)
    for axis in (2, 0, 1):
        values = axes[axis](values, axis + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "SLAB_BYTES", slab)
        found = labelled(parts, shape, file, interpolation=axes)
    np.testing.assert_array_equal(found, values.argmax(0))


def test_most_of_a_smooth_volume_is_not_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The voxels that are interpolated are counted: those at borders of classes, and no others."""
    points = []
    plain = agreement._points

    def counted(values: np.ndarray, rows: np.ndarray, *others: object) -> np.ndarray:
        points.append(len(rows))
        return plain(values, rows, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(agreement, "_points", counted)
    shape, file = (40, 40, 40), (120, 120, 120)
    parts = blocks(shape, 20, 6.0, 0, None)
    labelled(parts, shape, file)
    classes = np.concatenate([block.values for block in parts], 3).argmax(0).astype(np.uint16)
    border = (cell_classes(classes) == UNDECIDED).mean()
    assert 0.02 < border < 0.3
    assert sum(points) / np.prod(file) == pytest.approx(border, rel=0.1)


def head(random: np.random.Generator, classes: int) -> tuple[np.ndarray, np.ndarray]:
    return random.standard_normal((classes, CHANNELS)).astype(np.float32), np.zeros(classes, np.float32)


def test_features_give_the_labels_of_their_logits() -> None:
    """Up to voxels whose two largest logits are equal but for rounding."""
    random = np.random.default_rng(4)
    weight, bias = head(random, 20)
    shape, file = (14, 15, 16), (50, 41, 33)
    parts = blocks(shape, 8, 2.0, 1, None)
    values = np.concatenate([block.values for block in parts], 3)
    back = InverseResampler(CHANNELS, shape, file, 8)
    found = np.empty(file, np.uint8)
    for block in parts:
        for (x, y, z), labels, _ in labels_of_block(block, back, LogitsToLabels(range(20), (weight, bias))):
            width, height, planes = labels.shape
            found[x : x + width, y : y + height, z : z + planes] = labels
    for axis in (2, 0, 1):
        values = LinearInterpolation.between(shape[axis], file[axis])(values, axis + 1)
    logits = np.einsum("cf,fxyz->cxyz", weight.astype(np.float64), values.astype(np.float64))
    first, second = np.sort(logits, 0)[-1], np.sort(logits, 0)[-2]
    unequal = found != logits.argmax(0)
    assert (first - second)[unequal].max(initial=0) < 1e-6 and unequal.mean() < 1e-3


def test_what_is_not_a_number_is_interpolated() -> None:
    values = np.ones((CHANNELS, 4, 4, 4), np.float32)
    values[3] = 2
    values[:, 1, 1, 1] = np.nan
    certain = LogitsToLabels(range(CHANNELS)).certain_classes(values)
    assert (certain == UNDECIDED).all()  # the largest value is not known
    values[:, 1, 1, 1] = 2
    certain = LogitsToLabels(range(CHANNELS)).certain_classes(values)
    assert certain[1, 1, 1] == UNDECIDED and (certain == 3).sum() == 63


@pytest.mark.parametrize("smooth", [1.0, 6.0])
@pytest.mark.parametrize("shape", [(200, 180, 150), (60, 60, 240)])
@pytest.mark.parametrize("slab", [1 << 20, resampling.SLAB_BYTES])
def test_the_price_holds(
    smooth: float, shape: tuple[int, int, int], slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that NumPy allocates stay within the priced ones, whether a block is interpolated or not."""
    monkeypatch.setattr(resampling, "SLAB_BYTES", slab)
    grid = TileGrid((60, 60, 60), (60, 60, 32), 0.25)
    maker = LogitsToLabels(range(CHANNELS))
    parts = blocks(grid.shape, 30, smooth, 0, None)
    tracemalloc.start()
    back = InverseResampler(CHANNELS, grid.shape, shape, 32)
    planes = LabelPlanes(shape, row_depth(grid, shape), maker.dtype)
    for block in parts:
        for low, labels, last in labels_of_block(block, back, maker):
            list(planes.add(low, labels, last=last))
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    price = back_bytes(grid, shape, CHANNELS)
    labels_price = label_bytes(grid, shape, CHANNELS, CHANNELS, maker.dtype, copied=False)
    priced = price.resident + slab_bytes(grid, CHANNELS) + labels_price.resident
    assert used <= priced + max(price.transient, labels_price.transient)
