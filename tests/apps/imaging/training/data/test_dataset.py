"""Data sets as the Decathlon and nnU-Net lay them out: cases, channels, labels, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from apps.imaging.training.data.dataset import read_dataset
from apps.imaging.training.data.facts import intensity_operations
from apps.imaging.training.data.patch_sampling import Sampler, Volumes
from apps.imaging.training.data.prepared import load_case
from apps.imaging.training.losses.labels import IGNORED
from common.errors import BadInput
from tests.messages import says

SHAPE = (12, 10, 8)


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def numbered(folder: Path, cases: int = 3, **fields: Any) -> Path:
    """An nnU-Net raw data set of two channels, whose values say their case and channel."""
    for case in range(cases):
        for channel in range(2):
            image = np.full(SHAPE, 10 * case + channel, np.float32)
            image[0, 0, 0] += 100
            save(folder / "imagesTr" / f"case{case}_000{channel}.nii.gz", image)
        label = np.zeros(SHAPE, np.uint8)
        label[2:5], label[5:7] = 1, 3
        save(folder / "labelsTr" / f"case{case}.nii.gz", label)
    described = {
        "channel_names": {"0": "noNorm", "1": "T2"},
        "labels": {"background": 0, "organ": 1, "ignore": 3},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(described | fields))
    return folder


def test_a_raw_data_set_of_nnunet(tmp_path: Path) -> None:
    found = read_dataset(numbered(tmp_path))
    assert [case.name for case in found.cases] == ["case0", "case1", "case2"]
    assert (found.channels, found.labels, found.ignored) == (("noNorm", "T2"), {0: "background", 1: "organ"}, 3)
    operations = intensity_operations(found, found.cases)
    assert operations == [[], [{"op": "zscore"}]]
    image, classes = load_case(found.cases[2], found, operations)
    assert image.shape == (2, *SHAPE) and image.flags.c_contiguous
    assert (image[0, 1:] == 20).all() and image[0, 0, 0, 0] == 120  # noNorm
    assert abs(image[1].mean()) < 1e-5 and image[1].std() == pytest.approx(1, rel=1e-4)
    assert [int((classes == value).sum()) for value in (0, 1, IGNORED)] == [7 * 80, 3 * 80, 2 * 80]


def test_the_names_decide_without_a_description(tmp_path: Path) -> None:
    (numbered(tmp_path) / "dataset.json").unlink()
    lines: list[str] = []
    found = read_dataset(tmp_path, warn=lines.append)
    assert len(found.cases) == 3 and found.channels == ("channel 0", "channel 1")
    assert found.labels == {0: "background", 1: "label 1", 3: "label 3"} and found.ignored is None
    says(lines[0], "dataset.json", "labels")


def test_files_listed_by_nnunet(tmp_path: Path) -> None:
    numbered(tmp_path)
    images = [f"imagesTr/case1_000{channel}.nii.gz" for channel in (1, 0)]  # in the order of the list
    listed = {"one": {"images": images, "label": "labelsTr/case1.nii.gz"}}
    numbered(tmp_path, dataset=listed)
    (case,) = read_dataset(tmp_path).cases
    assert case.name == "one" and [image.path.name[-8] for image in case.images] == ["1", "0"]


def test_channels_in_one_file_as_in_the_decathlon(tmp_path: Path) -> None:
    image = np.stack([np.full(SHAPE, 5.0), np.full(SHAPE, 7.0)], -1).astype(np.float32)
    save(tmp_path / "imagesTr" / "a.nii.gz", image)
    save(tmp_path / "labelsTr" / "a.nii.gz", np.ones(SHAPE, np.uint8))
    described = {"modality": {"1": "noNorm", "0": "noNorm"}, "labels": {"0": "background", "1": "x"}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    found = read_dataset(tmp_path)
    loaded, _ = load_case(found.cases[0], found, intensity_operations(found, found.cases))
    assert (loaded[0] == 5).all() and (loaded[1] == 7).all()


@pytest.mark.parametrize("stored", [True, False])
def test_patches_have_every_channel_and_no_point_is_ignored(tmp_path: Path, stored: bool) -> None:
    found = read_dataset(numbered(tmp_path / "set"))
    volumes = Volumes(tmp_path / "cache" if stored else None)
    for case in found.cases:
        volumes.add(*load_case(case, found, [[], []]))
    assert all(2 <= x < 5 for points in volumes.points for x, _, _ in points)
    image, classes = volumes.read(1, (1, 2, 3), (6, 5, 8))
    assert image.shape == (2, 5, 3, 5) and classes.shape == (5, 3, 5)
    assert (image[0] == 10).all() and (image[1] == 11).all() and (classes[4] == IGNORED).all()
    images, labels = Sampler(volumes, (8, 8, 8), 4, seed=3)(0)
    assert images.shape == (4, 2, 8, 8, 8) and labels.shape == (4, 8, 8, 8)
    assert set(np.unique(labels.numpy()).tolist()) <= {0, 1, IGNORED}


def test_channels_are_mirrored_and_warped_together(tmp_path: Path) -> None:
    """Two channels that are equal, but for augmented intensities, stay equal."""
    values = np.random.default_rng(0).standard_normal((1, 16, 16, 16)).astype(np.float32)
    volumes = Volumes()
    volumes.add(np.concatenate([values, values]), (values[0] > 1).astype(np.uint8))
    for step in range(12):
        images, _ = Sampler(volumes, (8, 8, 8), 2, seed=1)(step)
        for first, second in images:
            together = np.corrcoef(first.ravel(), second.ravel())[0, 1]
            assert together > 0.9, (step, together)  # gamma and noise are drawn for each channel


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, ("regions", "whole")),
        ({"file_ending": ".mha"}, (".mha", ".nii.gz")),
        ({"channel_names": {"0": "T1"}}, ("case0_0001", "channel_names", "lists 1")),
        ({"channel_names": {"0": "T1", "2": "T2"}}, ("channels", "numbers")),
        ({"dataset": {"one": {"images": ["../x.nii.gz", "y.nii.gz"], "label": "z"}}}, ("../x.nii.gz", "outside")),
        ({"dataset": {"one": {"images": ["x.nii.gz"], "label": "z"}}}, ("one", "1 images", "2 channels")),
        ({"dataset": ["one"]}, ("dataset", "object")),
    ],
)
def test_a_description_that_is_not_understood(tmp_path: Path, fields: dict[str, Any], facts: tuple[str, ...]) -> None:
    with pytest.raises(BadInput) as caught:
        read_dataset(numbered(tmp_path, **fields))
    says(caught.value, *facts)


def remove_channel(folder: Path) -> None:
    (folder / "imagesTr" / "case1_0001.nii.gz").unlink()


def move_channel(folder: Path) -> None:
    affine = np.eye(4)
    affine[0, 3] = 4
    save(folder / "imagesTr" / "case1_0001.nii.gz", np.zeros(SHAPE, np.float32), affine)


def shrink_channel(folder: Path) -> None:
    save(folder / "imagesTr" / "case1_0001.nii.gz", np.zeros((12, 10, 7), np.float32))


@pytest.mark.parametrize(
    ("damage", "facts"),
    [
        (remove_channel, ("case1", "channel 1", "case1_0001.nii.gz")),
        (move_channel, ("case1", "channel 1", "different places")),
        (shrink_channel, ("case1", "channel 1", "12x10x7")),
    ],
)
def test_channels_that_do_not_go_together(
    tmp_path: Path, damage: Callable[[Path], None], facts: tuple[str, ...]
) -> None:
    damage(numbered(tmp_path))
    with pytest.raises(BadInput) as caught:
        read_dataset(tmp_path)
    says(caught.value, *facts)
    lines: list[str] = []
    found = read_dataset(tmp_path, skip_bad=True, warn=lines.append)
    assert [case.name for case in found.cases] == ["case0", "case2"]
    says(lines[0], "skipped", *facts)
