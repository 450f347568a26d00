"""Labels as further channels: resampled as nnU-Net resamples them, and a cascade from file to file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from apps.imaging.bench.peers import nnunet_folder
from apps.imaging.importers.convert import converted_model
from apps.imaging.volumes.filled import MaskFile
from apps.imaging.volumes.one_hot import OneHot, StageLabels
from common.errors import BadInput
from common.memory.process.budget import GIB, MemoryBudget
from tests.apps.imaging import in_process
from tests.apps.imaging.helpers import output_file, read_labels, write_nifti
from tests.messages import refused
from tests.promise import kept


class Stored:
    """Labels in memory."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels

    def plane(self, number: int) -> np.ndarray:
        return np.ascontiguousarray(self.labels[..., number])


def resized(kinds: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Each kind interpolated alone; the largest share wins, of equal ones that of the nearest voxel, else the first."""
    kinds, shape = kinds.transpose(), shape[::-1]  # nnU-Net's axes, whose order decides how sums are rounded
    factors = [new / old for new, old in zip(shape, kinds.shape, strict=True)]
    values = np.unique(kinds)
    shares = np.stack(
        [ndimage.zoom((kinds == v).astype(float), factors, order=1, mode="nearest", grid_mode=True) for v in values]
    )
    nearest = ndimage.zoom(kinds, factors, order=0, mode="nearest", grid_mode=True)
    top = shares >= shares.max(axis=0)
    index = np.searchsorted(values, nearest)
    tied = np.take_along_axis(top, index[None], 0)[0]
    result: np.ndarray = np.where(tied, nearest, values[top.argmax(axis=0)]).transpose()
    return result


@pytest.mark.parametrize("shape", [(12, 10, 8), (17, 13, 5), (9, 21, 11), (26, 20, 16)])
def test_labels_are_resized_as_the_framework_does(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(0)
    labels = ndimage.zoom(random.integers(0, 4, (4, 4, 3)), (3.5, 3, 3), order=0).astype(np.uint8) * 2
    low, box = (1, 2, 1), labels[1:, 2:, 1:]
    inside = random.random(box.shape) < 0.8
    kinds = np.where(box > 0, box // 2 + 1, np.where(inside, 1, 0))
    expected, plane = resized(kinds, shape), np.empty((1, shape[1], shape[0]), np.float32)
    with MaskFile(box.shape, tmp_path) as mask:
        mask.write(inside[..., number].T for number in range(box.shape[2]))
        stage = StageLabels(Stored(labels), low, box.shape, (2, 4, 6), mask)
        with OneHot(stage, shape, None, tmp_path) as masks:
            for channel in range(masks.channels):
                reader = masks.reader(channel)
                for number in range(shape[2]):
                    reader.read(plane)
                    np.testing.assert_array_equal(plane[0].T, expected[..., number] == channel + 2)
    assert not list(tmp_path.iterdir())


def cascade(folder: Path, **changes: Any) -> Any:
    """A folder of each stage; returns the second's network."""
    low = {"spacing": [3.6, 1.6, 1.6], "patch_size": [8, 16, 16], "configuration": "3d_lowres"}
    nnunet_folder.write(folder / "nnUNetTrainer__nnUNetPlans__3d_lowres", seeds=(4,), scaled=True, **low)
    high = {"configuration": "3d_cascade_fullres", "previous_stage": "3d_lowres", "masks": 2, **changes}
    (made,) = nnunet_folder.write(
        folder / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres", seeds=(5,), scaled=True, **high
    )
    return made


def test_the_labels_of_the_first_stage_are_channels_of_the_second(run: Any, tmp_path: Path) -> None:
    import torch

    made = cascade(tmp_path)
    random = np.random.default_rng(1)
    values = ndimage.gaussian_filter(random.normal(100, 200, (24, 16, 8)), 2).astype(np.float32)
    image = write_nifti(tmp_path / "image.nii.gz", values, np.diag([0.8, 0.8, 3.6, 1.0]))
    words = ("infer", image)
    in_process.done(*words, "-m", tmp_path / "nnUNetTrainer__nnUNetPlans__3d_lowres", "-o", tmp_path / "first")
    coarse = read_labels(output_file(tmp_path / "first"))
    assert {*np.unique(coarse)} == {0, 1, 2}
    score = (values - values.mean(dtype=np.float64)) / values.std(dtype=np.float64)
    stacked = np.stack([score, coarse == 1, coarse == 2]).astype(np.float32).transpose(0, 3, 2, 1)
    with torch.inference_mode():
        expected = made(torch.from_numpy(stacked)[None])[0].numpy().argmax(0).transpose(2, 1, 0)
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
    done = run("apps.imaging", *words, "-m", folder, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    kept(done.record)
    np.testing.assert_array_equal(read_labels(output_file(tmp_path / "out")), expected)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["image.nii.gz", "run.json", "studies.csv"]
    mirrored = run(
        "apps.imaging",
        *words,
        "-m",
        folder,
        "-o",
        tmp_path / "mirrored",
        "--tta",
        "mirror",
        "--engine",
        "torch",
        "--json",
    )
    assert mirrored.code == 0, mirrored.err
    kept(mirrored.record)


def test_a_cascade_without_its_first_stage_is_refused(tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "image.nii.gz", np.ones((24, 16, 8), np.int16))
    cascade(tmp_path)
    converted = converted_model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres", MemoryBudget(2 * GIB))
    with refused(BadInput, "second stage of a cascade"):
        in_process.done("infer", image, "-m", converted, "-o", tmp_path / "out")
    (tmp_path / "nnUNetTrainer__nnUNetPlans__3d_lowres" / "plans.json").unlink()
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
    with refused(BadInput, "takes the labels of 3d_lowres, which is not in"):
        in_process.done("infer", image, "-m", folder, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"resampling_fn_seg": "resample_torch_fornnunet", "resampling_fn_seg_kwargs": {}}, "resample_torch_fornnunet"),
        ({"use_mask_for_norm": [True]}, "use_mask_for_norm"),
    ],
)
def test_what_a_cascade_does_otherwise_is_refused(tmp_path: Path, changes: dict[str, Any], fact: str) -> None:
    cascade(tmp_path, **changes)
    with pytest.raises(BadInput, match=fact):
        converted_model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres", MemoryBudget(2 * GIB))
