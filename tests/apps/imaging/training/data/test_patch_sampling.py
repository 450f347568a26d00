"""Prepared cases in memory and in a file, and in which numbers."""

from pathlib import Path

import numpy as np
import pytest

from apps.imaging.training.data.patch_sampling import STORES, Volumes

SHAPE = (7, 6, 5)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_region_is_read_back_in_the_numbers_that_are_kept(store: str, on_disk: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    file = tmp_path / "cache" if on_disk else None
    volumes, cases = Volumes(file, store), []
    for _ in range(2):
        image = random.standard_normal((2, *SHAPE), np.float32)
        cases.append((image, random.integers(0, 3, SHAPE, np.uint8)))
        volumes.add(*cases[-1])
    for index, (image, classes) in enumerate(cases):
        values, members = volumes.read(index, (1, 0, 2), (6, 6, 4))
        assert values.dtype == np.float32
        assert np.array_equal(values, image.astype(store)[:, 1:6, :, 2:4])
        assert np.abs(values - image[:, 1:6, :, 2:4]).max() < 1e-3
        assert np.array_equal(members, classes[1:6, :, 2:4])
    if file is not None:
        assert file.stat().st_size == 2 * np.prod(SHAPE) * (2 * np.dtype(store).itemsize + 1)
