"""A box of an image segmented alone: the labels of the whole inside it, and what makes a coarse pass unsure."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.inference.components.filters import major_only
from apps.imaging.inference.focus import MINOR, Box, Found, Unsure, coarse
from apps.imaging.inference.labeling.decision import LogitsToLabels
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.inference.pipeline import finished_values, label_planes
from apps.imaging.inference.reading import resolved
from apps.imaging.models.model_folder import Inference, read_model
from apps.imaging.volumes.nifti import open_nifti
from apps.imaging.volumes.nonzero_crop import uncropped
from common.tiling.blend import Block
from tests.apps.imaging.helpers import random_model, write_nifti

SHAPE = (47, 39, 33)
AFFINE = np.diag([-1.0, 1.0, 1.0, 1.0])
CASES: dict[str, dict[str, Any]] = {
    "as stored": {},
    "resampled": {"spacing": (1.3, 0.8, 1.7)},
    "turned": {"spacing": (1.2, 1.2, 0.9), "orientation": "PIR"},
    "nnU-Net": {"convention": "nnunet", "spacing": (1.0, 1.0, 1.0)},
    "nnU-Net by splines": {"convention": "nnunet", "spacing": (1.4, 1.1, 0.9)},
    "bundle": {"convention": "bundle", "spacing": (1.3, 0.8, 1.7), "restored": "softmax"},
    "bundle of labels": {"convention": "bundle", "spacing": (1.3, 0.8, 1.7), "restored": "labels"},
}


class Stub:
    """An engine whose values are sums of what is near: any change of a tile's content or place changes them."""

    in_channels, out_channels = 1, 3

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        values = (
            tiles + np.roll(tiles, 1, -1) - np.roll(tiles, 2, -2) + np.linspace(0, 1, tiles.shape[-3])[:, None, None]
        )
        return np.concatenate([values, np.roll(values, 3, -3), 0.2 - values], 1).astype(np.float32)


def labels(grid: NetworkGrid, operations: Any) -> np.ndarray:
    blocks = finished_values(grid, Stub(), operations)
    planes = label_planes(grid, 3, blocks, LogitsToLabels([0, 1, 2]))
    return np.concatenate([plane.copy() for plane in planes], axis=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("focus")
    random_model(path / "model", patch=(16, 12, 8))
    values = np.random.default_rng(0).normal(40, 20, SHAPE).astype(np.int16)
    write_nifti(path / "image.nii.gz", values, AFFINE)
    return path


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("box", [((12, 20, 9), (18, 25, 14)), ((0, 0, 0), (9, 39, 5)), ((40, 30, 30), SHAPE)])
def test_labels_inside_a_box_are_those_of_the_whole(folder: Path, case: str, box: tuple[Any, Any]) -> None:
    changes = dict(CASES[case])
    inference = Inference(restored=changes.pop("restored", "logits"))
    model = replace(read_model(folder / "model"), inference=inference, **changes)
    grid = NetworkGrid.of(open_nifti(folder / "image.nii.gz"), model, tile=(16, 12, 8), overlap=0.5)
    operations = resolved(grid, model)
    whole = labels(grid, operations)
    focused, first = grid.focused(*box)
    assert len(focused.tiles) < len(grid.tiles)
    part = uncropped(iter([labels(focused, operations)]), SHAPE, first, np.dtype(np.uint8))
    kept = []
    for plane in part:
        kept.append(plane.copy())
    inside = tuple(slice(low, high) for low, high in zip(*box, strict=True))
    found = np.concatenate(kept, axis=2)
    assert found.shape == whole.shape and len(np.unique(whole[inside])) == 3
    np.testing.assert_array_equal(found[inside], whole[inside])


def test_the_box_of_a_coarse_grid_covers_what_it_found(folder: Path) -> None:
    for changes in (
        {},
        {"convention": "bundle"},
        {"convention": "nnunet"},
        {"orientation": "LPI", "convention": "bundle"},
    ):
        model = coarse(replace(read_model(folder / "model"), **changes))
        assert model.spacing == (3.0, 3.0, 3.0)
        grid = NetworkGrid.of(open_nifti(folder / "image.nii.gz"), model, tile=(16, 12, 8), overlap=0.5)
        low, high = grid.to_box((3, 4, 2), (5, 6, 4))
        # Three millimetres apart from the first or the last voxel of the file, whichever the model's axis begins at.
        for axis, (first, stop) in enumerate(((3, 5), (4, 6), (2, 4))):
            flip = grid.axes.flips[axis] and changes.get("convention") == "bundle"
            shift = (SHAPE[axis] - 1) - 3 * (grid.whole[axis] - 1) if flip else 0
            assert low[axis] <= 3 * first + shift + 1 and high[axis] >= 3 * (stop - 1) + shift
            assert high[axis] - low[axis] <= 3 * (stop - first) + 6


def test_outside_of_the_box_is_background_and_a_cut_is_noticed() -> None:
    volume = np.zeros((10, 9, 8), np.uint8)
    volume[3:6, 3:6, 3:6], volume[0, 0, 0] = 1, 2
    whole = Box((2, 2, 2), (7, 7, 7))
    kept = np.concatenate(list(whole.kept(iter([volume[..., :3], volume[..., 3:4], volume[..., 4:]]), volume.shape)), 2)
    assert kept[0, 0, 0] == 0 and (kept[3:6, 3:6, 3:6] == 1).all() and kept.sum() == 27
    for axis in range(3):
        low, high = [2, 2, 2], [7, 7, 7]
        high[axis] = 5
        with pytest.raises(Unsure, match="cuts"):
            list(Box(tuple(low), tuple(high)).kept(iter([volume[..., :3], volume[..., 3:]]), volume.shape))  # type: ignore[arg-type]
    touching = np.ones((4, 4, 4), np.uint8)
    assert sum(plane.sum() for plane in Box((0, 0, 0), (4, 4, 4)).kept(iter([touching]), (4, 4, 4))) == 64
    with pytest.raises(Unsure, match="outside"):
        whole.moved((8, 0, 0), (2, 9, 8))


def test_what_is_not_found_or_not_probable_is_unsure(folder: Path, tmp_path: Path) -> None:
    model, to_labels = read_model(folder / "model"), LogitsToLabels([0, 1, 2])
    grid = NetworkGrid.of(open_nifti(folder / "image.nii.gz"), model, tile=SHAPE, overlap=0.5)
    logits = np.zeros((3, *SHAPE), np.float32)
    logits[0] = 5

    def located() -> Box:
        found = Found(to_labels, grid)
        return found.box(major_only(found.planes(iter([Block((0, 0, 0), logits, last=True)])), MINOR, tmp_path))

    with pytest.raises(Unsure, match="nothing"):
        located()
    logits[1, 10:20, 5:9, 3:8] = 5.1
    with pytest.raises(Unsure, match=r"0\.52"):
        located()
    logits[1, 10:20, 5:9, 3:8] = 12
    logits[1, 40:42, 30:32, 20:24] = 12  # 16 voxels of 200 are an error, and the only ones of their class are none
    assert located() == Box((10, 5, 3), (20, 9, 8))
    logits[1, 40:42, 30:32, 20:25] = 12
    assert located() == Box((10, 5, 3), (42, 32, 25))
    logits[1, 40:42, 30:32, 20:25], logits[2, 30, 2, 1] = 0, 12
    assert located() == Box((10, 2, 1), (31, 9, 8))
