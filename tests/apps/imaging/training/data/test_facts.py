"""Facts of real cases, streamed, against NumPy on whole volumes."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from apps.imaging.training.data import facts
from apps.imaging.training.data.dataset import read_dataset
from apps.imaging.volumes import volume
from common.errors import BadInput
from tests.messages import refused

SHAPE = (12, 10, 8)


def linked(source: Path, folder: Path, cases: int) -> Path:
    """The first cases of the hippocampus set, with the channel's name of CT."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        for path in sorted((source / part).glob("*.nii.gz"))[:cases]:
            (folder / part / path.name).symlink_to(path)
    labels = {"0": "background", "1": "Anterior", "2": "Posterior"}
    (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "labels": labels}))
    return folder


def test_a_pass_in_blocks_finds_what_numpy_finds(
    dataset: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_dataset(linked(dataset("msd-hippocampus"), tmp_path / "set", 3))
    monkeypatch.setattr(volume, "BLOCK_BYTES", 35 * 51 * 4 * 3)  # three planes
    whole, values = facts.Intensities(), []
    read = [facts.read_facts(case, found) for case in found.cases]
    for case, one in zip(found.cases, read, strict=True):
        label = np.asarray(nib.load(case.label.path).dataobj)
        labelled = np.asarray(nib.load(case.images[0].path).dataobj, np.float32)[label > 0]
        assert one.voxels == {value: int((label == value).sum()) for value in (0, 1, 2)}
        (channel,) = one.channels
        assert (channel.count, channel.least, channel.largest) == (labelled.size, labelled.min(), labelled.max())
        assert channel.mean == pytest.approx(labelled.mean(dtype=float), rel=1e-9)
        assert channel.deviation == pytest.approx(labelled.std(dtype=float), rel=1e-9)
        assert np.array_equal(np.sort(channel.sample), np.sort(labelled))  # fewer than a sample has
        assert one.constant == ()
        whole.merge(channel)
        values.append(labelled)
    pooled = np.concatenate(values)
    assert whole.mean == pytest.approx(pooled.mean(dtype=float), rel=1e-9)
    assert whole.deviation == pytest.approx(pooled.std(dtype=float), rel=1e-9)
    low, high = np.percentile(pooled, (0.5, 99.5))
    expected = [[{"op": "clip", "low": low, "high": high}, {"op": "scale", "low": low, "high": high}]]
    assert facts.intensity_operations(found, found.cases, read) == expected
    assert facts.intensity_operations(found, found.cases) == expected  # as a training without a recipe finds it


def test_a_sample_is_even_and_bounded() -> None:
    one = facts.Intensities()
    for part in np.array_split(np.arange(100_000, dtype=np.float32), 7):
        one.add(part, most=500)
        assert one.sample.size <= 1000
    assert set(np.diff(one.sample)) == {128.0}  # every 128th, over the borders of the parts
    sample = one.closed(most=500).sample
    assert sample.size == 500 and (sample[0], sample[-1]) == (0, 99_968)
    assert one.mean == pytest.approx(49_999.5) and one.deviation == pytest.approx(100_000 / 12**0.5, rel=1e-6)


def case(folder: Path, image: np.ndarray, label: np.ndarray) -> Path:
    for part, values in (("imagesTr", image), ("labelsTr", label)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / part / "a.nii.gz")
    labels = {"background": 0, "organ": 1, "ignore": 7}
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": labels, "training": None}))
    return folder


def test_ignored_voxels_and_values_that_are_no_numbers(tmp_path: Path) -> None:
    image, label = np.full(SHAPE, 3, np.float32), np.zeros(SHAPE, np.uint8)
    label[:2], label[2:4] = 1, 7
    image[0, 0, 0], image[2] = np.nan, 1000
    (folder := tmp_path / "set").mkdir()
    case(folder, image, label)
    (folder / "imagesTr" / "a.nii.gz").rename(folder / "imagesTr" / "a_0000.nii.gz")
    found = read_dataset(folder)
    one = facts.read_facts(found.cases[0], found)
    (channel,) = one.channels
    assert (one.voxels[7], channel.count, channel.least, channel.largest) == (160, 160, 0, 3)


@pytest.mark.parametrize(("value", "words"), [(4, ("case a", "4", "dataset.json")), (0.5, ("case a", "whole"))])
def test_labels_that_are_not_listed(tmp_path: Path, value: float, words: tuple[str, ...]) -> None:
    label = np.zeros(SHAPE, np.float32)
    label[0] = value
    folder = case(tmp_path / "set", np.ones(SHAPE, np.float32), label)
    (folder / "imagesTr" / "a.nii.gz").rename(folder / "imagesTr" / "a_0000.nii.gz")
    found = read_dataset(folder)
    with refused(BadInput, *words):
        facts.read_facts(found.cases[0], found)


def test_a_window_needs_labelled_voxels(tmp_path: Path) -> None:
    folder = case(tmp_path / "set", np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.uint8))
    (folder / "imagesTr" / "a.nii.gz").rename(folder / "imagesTr" / "a_0000.nii.gz")
    found = read_dataset(folder)
    assert facts.read_facts(found.cases[0], found).constant == (0,)
    with refused(BadInput, "CT", "labelled"):
        facts.intensity_operations(found, found.cases)
