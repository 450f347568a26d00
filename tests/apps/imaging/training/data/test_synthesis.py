"""Synthesis from label maps: places, intensities, and that both follow from the generator alone."""

import tracemalloc
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from apps.imaging.training.data import synthesis
from apps.imaging.training.data.label_table import LabelTable, read_table
from apps.imaging.training.data.synthesis import cut, paint, region_voxels, synthesis_bytes
from tests.apps.imaging.training.data.test_label_table import write

SPACING = (2.0, 2.0, 2.0)


@pytest.fixture
def table(tmp_path: Path) -> LabelTable:
    return read_table(write(tmp_path / "table.json"))


@pytest.fixture
def tissues() -> np.ndarray:
    """A ball of two halves in a shell, in tissue of the background, in air."""
    x, y, z = np.meshgrid(*[np.arange(40)] * 3, indexing="ij")
    distance = np.sqrt((x - 19.5) ** 2 + (y - 19.5) ** 2 + (z - 19.5) ** 2)
    return np.select([distance < 10, distance < 14, distance < 18], [2, 3, 1], 0).astype(np.uint8)


def test_an_image_follows_from_its_generator(table: LabelTable, tissues: np.ndarray) -> None:
    image, classes = paint(np.random.default_rng(5), tissues, table, SPACING)
    again, _ = paint(np.random.default_rng(5), tissues, table, SPACING)
    other, _ = paint(np.random.default_rng(6), tissues, table, SPACING)
    assert image.tobytes() == again.tobytes() and not np.array_equal(image, other)
    assert image.shape == (1, 40, 40, 40) and image.dtype == np.float32 and classes.dtype == np.uint8
    assert image.mean(dtype=np.float64) == pytest.approx(0, abs=1e-4)
    assert image.std(dtype=np.float64) == pytest.approx(1, abs=1e-4)


def test_contrasts_are_random_and_near_the_typical_ones_as_often_as_the_table_says(table: LabelTable) -> None:
    drawn = np.stack([synthesis._levels(np.random.default_rng(seed), table) for seed in range(2000)])
    ball, shell = drawn[:, 2, 0], drawn[:, 3, 0]
    # Normal around 130 by 12 in a quarter of the images, uniform from 0 to 255 in the others.
    near = (np.abs(ball - 130) < 12).mean()
    assert near == pytest.approx(0.25 * 0.683 + 0.75 * 24 / 255, abs=0.03)
    assert (np.abs(shell - 130) < 12).mean() == pytest.approx(24 / 255, abs=0.03)
    assert (drawn[:, 0, 0] < 12).mean() == pytest.approx(synthesis.DARK_AIR + 0.3 * 12 / 255, abs=0.03)
    assert (drawn[:, :, 1] >= 0).all()


def test_a_skull_is_stripped_with_or_without_what_is_around_the_brain(table: LabelTable, tissues: np.ndarray) -> None:
    kinds = {"whole": 0, "stripped": 0, "bare": 0}
    for seed in range(60):
        image, classes = paint(np.random.default_rng(seed), tissues, table, SPACING)
        outside = np.unique(image[0][tissues <= 1])
        if len(outside) > 1:
            kinds["whole"] += 1
            assert np.array_equal(classes, table.class_of[tissues])
        elif (classes == 2).any():
            kinds["stripped"] += 1
            assert len(np.unique(image[0][tissues == 3])) > 1
        else:
            kinds["bare"] += 1
            assert np.unique(image[0][tissues == 3]) == outside and np.array_equal(classes == 1, tissues == 2)
    assert 15 < kinds["whole"] < 45 and kinds["stripped"] > 5 and kinds["bare"] > 5


@pytest.mark.parametrize(("axis", "sigma"), [(0, 0.5), (1, 1.3), (2, 2.0)])
def test_the_blur_is_scipys(axis: int, sigma: float) -> None:
    image = np.random.default_rng(0).normal(size=(9, 14, 21)).astype(np.float32)
    expected = gaussian_filter1d(image, sigma, axis, mode="nearest", radius=round(3 * sigma))
    np.testing.assert_allclose(synthesis.gaussian(image, axis, sigma), expected, atol=1e-5)


def test_a_smooth_field_is_smooth() -> None:
    field = synthesis._smooth(np.random.default_rng(0), (60, 70, 80), (3, 3, 4))
    assert field.shape == (60, 70, 80) and field.std() > 0.2
    assert max(np.abs(np.diff(field, axis=axis)).max() for axis in range(3)) < 0.15


def placed(volume: np.ndarray, **changes: Any) -> np.ndarray:
    """A patch of 6 x 8 x 10 voxels of 1 mm around the centre, neither turned nor bent unless ``changes`` say so."""
    options = {
        "matrix": np.eye(3),
        "centre": np.array([9.5, 9.5, 9.5]),
        "patch": (6, 8, 10),
        "scale": np.ones((2, 3)),
        "fill": 9,
        "bend": 0.0,
    }

    def read(low: tuple[int, ...], high: tuple[int, ...]) -> np.ndarray:
        assert min(low) >= 0 and all(b <= size for b, size in zip(high, volume.shape, strict=True))
        return volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]

    return cut(np.random.default_rng(0), read, volume.shape, **(options | changes))  # type: ignore[arg-type]


def test_patches_are_cut_where_they_are_asked_for() -> None:
    volume = np.random.default_rng(1).integers(0, 8, (20, 20, 20)).astype(np.uint8)
    assert np.array_equal(placed(volume), volume[7:13, 6:14, 5:15])
    flipped = placed(volume, matrix=np.diag([-1.0, 1, 1]))
    assert np.array_equal(flipped, volume[7:13, 6:14, 5:15][::-1])
    turned = placed(volume, matrix=np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))
    assert np.array_equal(turned, np.rot90(volume[6:14, 7:13, 5:15], -1))
    coarse = placed(volume, scale=np.array([[2.0, 2, 1], [1, 1, 1]]), centre=np.array([9.0, 9, 9.5]))
    assert np.array_equal(coarse, volume[4:15:2, 2:17:2, 5:15])
    beyond = placed(volume, centre=np.array([0.5, 9.5, 9.5]))
    assert (beyond[:2] == 9).all() and np.array_equal(beyond[2:], volume[:4, 6:14, 5:15])
    assert (placed(volume, centre=np.array([-40.0, 9, 9])) == 9).all()
    bent = placed(volume, bend=3.0)
    assert 0.1 < (bent != volume[7:13, 6:14, 5:15]).mean() < 0.95


def test_the_price_contains_what_a_patch_allocates(table: LabelTable) -> None:
    shape, patch = (150, 160, 170), (64, 72, 56)
    volume = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint8)
    priced = synthesis_bytes(prod(patch), region_voxels(patch, shape, SPACING, (1.0, 1.0, 1.0)))
    for seed in range(3):
        tracemalloc.start()
        tissues = placed(volume, patch=patch, scale=np.array([SPACING, [1.0] * 3]), centre=np.array([75.0, 80, 85]))
        paint(np.random.default_rng(seed), tissues, table, SPACING)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 0.5 * priced < peak <= priced  # a patch that is turned needs a larger part of the map
