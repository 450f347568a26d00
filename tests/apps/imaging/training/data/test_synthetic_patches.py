"""Batches of synthesised patches: the same for a seed and a step, wherever the maps are kept."""

from pathlib import Path

import numpy as np
import pytest
import torch

from apps.imaging.training.data.label_table import read_table
from apps.imaging.training.data.patch_sampling import FOREGROUND_POINTS, Volumes
from apps.imaging.training.data.synthetic_patches import SynthesisSampler
from tests.apps.imaging.training.data.test_label_table import TABLE, write


def sampler(folder: Path, *, stored: bool = False, seed: int = 3) -> SynthesisSampler:
    """Of two maps whose upper half (along z) is a shell, and the lower half a ball."""
    table = read_table(write(folder / "table.json", TABLE))
    volumes = Volumes(folder / f"cache-{seed}" if stored else None)
    for side in (24, 30):
        tissues = np.zeros((side, side, side), np.uint8)
        tissues[4:-4, 4:-4, 4:-4], tissues[4:-4, 4:-4, side // 2 : -4] = 2, 3
        image = np.empty((0, side, side, side), np.float32)
        volumes.add(image, tissues, foreground=tissues > 1, spacing=(1.0, 1.0, 1.0))
    return SynthesisSampler(volumes, table, (2.0, 2.0, 2.0), (8, 12, 16), 2, seed)


def test_a_batch_follows_from_seed_and_step_wherever_the_maps_are(tmp_path: Path) -> None:
    images, classes = sampler(tmp_path)(4)
    assert images.shape == (2, 1, 8, 12, 16) and classes.shape == (2, 8, 12, 16)
    assert images.dtype == torch.float32 and classes.dtype == torch.uint8
    for other in (sampler(tmp_path), sampler(tmp_path, stored=True)):
        assert all(torch.equal(one, two) for one, two in zip((images, classes), other(4), strict=True))
    assert not torch.equal(classes, sampler(tmp_path, seed=4)(4)[1])
    assert not torch.equal(classes, sampler(tmp_path)(5)[1])


def test_every_patch_sees_classes_and_up_stays_up(tmp_path: Path) -> None:
    draw = sampler(tmp_path)
    heights = []
    for step in range(10):
        for classes in draw(step)[1].numpy():
            assert set(np.unique(classes)) <= {0, 1, 2} and (classes == 1).any()
            if (classes == 2).any():
                heights.append(np.argwhere(classes == 2)[:, 2].mean() - np.argwhere(classes == 1)[:, 2].mean())
    assert len(heights) > 5 and min(heights) > 0


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 1.0])
def test_places_of_a_mask_are_spread_evenly(share: float) -> None:
    mask = np.random.default_rng(0).random((11, 12, 13)) < share
    mask[3] = False
    volumes = Volumes()
    volumes.add(np.empty((0, *mask.shape), np.float32), mask.astype(np.uint8), foreground=mask)
    every = np.argwhere(mask)
    ranks = np.linspace(0, len(every) - 1, FOREGROUND_POINTS).astype(int)
    assert np.array_equal(volumes.points[0], every[ranks] if len(every) else every)
