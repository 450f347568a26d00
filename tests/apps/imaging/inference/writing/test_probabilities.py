"""Probabilities: those of MONAI's and PyTorch's own softmax and sigmoid, within half a step of the whole numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from apps.imaging.bench.peers import nnunet_folder
from common.errors import UsageError
from tests.apps.imaging import bundle_folder
from tests.apps.imaging.bundle_folder import INVERT, RANGE, SIGMOID, SOFTMAX, THRESHOLD, spaced
from tests.apps.imaging.helpers import random_model, read_labels, write_nifti
from tests.apps.imaging.in_process import done
from tests.messages import refused
from tests.promise import kept

REGIONS = ["core", "whole", "enhancing one"]
CROP = {"_target_": "CropForegroundd", "source_key": "@image_key"}
ARGMAX = {"_target_": "AsDiscreted", "argmax": True}
BUNDLES: dict[str, dict[str, Any]] = {
    "softmax": {"after": (SOFTMAX, INVERT, ARGMAX)},
    "logits": {"before": (RANGE, *spaced(2.3, 2.5, 3.4, orientation="PIR")), "after": (INVERT, SOFTMAX, ARGMAX)},
    "cropped": {
        "before": (*spaced(2.0, 2.5, 3.4), {**RANGE, "b_min": 0.0}, CROP),
        "after": (SOFTMAX, INVERT, ARGMAX),
    },
    "sigmoid": {"after": (SIGMOID, INVERT, THRESHOLD), "channel_names": REGIONS},
}


def written(path: Path) -> np.ndarray:
    """The file by nibabel: (classes, x, y, z)."""
    return np.moveaxis(np.asarray(nib.load(path).dataobj, np.float64), -1, 0)


@pytest.fixture(scope="module")
def bundles(dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of a real CT, bundles, and the probabilities that MONAI gives: its pipeline without the decision."""
    folder = tmp_path_factory.mktemp("bundles")
    image = folder / "image.nii.gz"
    nib.save(nib.load(dataset("ct-sample") / "example_ct_sm.nii.gz").slicer[24:88, 24:80], image)
    undecided = []
    for name, changes in BUNDLES.items():
        bundle_folder.write(folder / name, **changes)
        after = tuple(one for one in changes["after"] if one not in (ARGMAX, THRESHOLD))
        undecided.append(bundle_folder.write(folder / f"{name}-undecided", **{**changes, "after": after}))
    bundle_folder.with_monai(image, *undecided)
    return folder


@pytest.mark.parametrize("name", BUNDLES)
def test_probabilities_are_those_of_monai(run: Any, bundles: Path, tmp_path: Path, name: str) -> None:
    options = ["--probabilities", "uint16"] if name == "softmax" else ["--probabilities"]
    steps = 65535 if name == "softmax" else 255
    words = ("infer", bundles / "image.nii.gz", "-m", bundles / name, "-o", tmp_path, *options)
    if name == "sigmoid":
        done(*words)
    else:
        given = run("apps.imaging", *words, "--json")
        assert given.code == 0, given.err
        kept(given.record)
    expected = np.load(bundles / f"{name}-undecided" / "expected.npy")
    found = written(tmp_path / "image-probabilities.nii.gz")
    assert found.shape == expected.shape and expected.max(axis=0).min() < 0.9
    assert np.abs(found - expected).max() <= 0.5 / steps + 2e-4  # the engines' own rounding


def test_of_a_model_of_ours_by_tiles_and_for_some_classes(tmp_path: Path) -> None:
    import torch
    from monai.inferers import sliding_window_inference

    network = random_model(tmp_path / "model", classes=4, intensity=())
    values = np.random.default_rng(0).normal(0, 1, (40, 37, 29)).astype(np.float32)
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    image = write_nifti(tmp_path / "image.nii.gz", values, affine)
    words = ("infer", image, "-m", tmp_path / "model", "-o", tmp_path / "out", "--probabilities", "uint16")
    done(*words, "--roi-subset", "class 1,class 3", "--split-classes")
    tensor = torch.from_numpy(values[None, None, ::-1].copy())
    with torch.inference_mode():
        logits = sliding_window_inference(tensor, (16, 24, 16), 1, network, overlap=0.5, mode="gaussian")[0]
    expected = logits.softmax(0).numpy()[[0, 1, 3], ::-1]
    file = nib.load(tmp_path / "out" / "image-probabilities.nii.gz")
    assert np.abs(written(tmp_path / "out" / "image-probabilities.nii.gz") - expected).max() <= 0.5 / 65535 + 1e-5
    assert file.header.get_data_dtype() == np.uint16 and (file.affine == affine).all()
    assert b'"name": "class 3"' in file.header.extensions[0].get_content()


def test_around_the_box_of_nnunet_background_is_certain(tmp_path: Path) -> None:
    pytest.importorskip("dynamic_network_architectures")
    nnunet_folder.write(tmp_path / "model", seeds=(0,), scaled=True)
    values = np.random.default_rng(1).normal(100, 20, (40, 36, 14)).astype(np.int16)
    values[:7] = values[:, -5:] = values[..., :2] = values[..., -3:] = 0
    image = write_nifti(tmp_path / "image.nii.gz", values, np.diag([0.9, 0.8, 3.0, 1.0]))
    done("infer", image, "-m", tmp_path / "model", "-o", tmp_path / "out", "--probabilities", "uint16")
    found = written(tmp_path / "out" / "image-probabilities.nii.gz")
    outside = values == 0
    assert np.abs(found[0, outside] - 1).max() < 1e-6 and (found[1:, outside] == 0).all()
    assert np.abs(found.sum(axis=0) - 1).max() < 1e-4 and found[0, ~outside].min() < 0.5
    labels = read_labels(tmp_path / "out" / "image.nii.gz")
    best = np.sort(found, axis=0)
    clear = best[-1] - best[-2] > 1e-3
    assert clear.mean() > 0.9 and (found.argmax(axis=0) == labels)[clear].all()


@pytest.mark.parametrize("case", ["labels", "several", "task"])
def test_what_has_no_probabilities_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    image = write_nifti(tmp_path / "image.nii.gz", np.ones((24, 24, 24), np.int16))
    model, reason = tmp_path / "model", "several networks"
    options: list[object] = ["-m", model]
    if case == "labels":
        bundle_folder.write(model, after=(SOFTMAX, ARGMAX, {**INVERT, "nearest_interp": True}))
        reason = "takes labels, not probabilities"
    elif case == "several":
        options += ["-m", model, "--labels", tmp_path / "map.json"]
    else:
        options += ["--task", "total"]
    with refused(UsageError, reason):
        done("infer", image, *options, "-o", tmp_path / "out", "--probabilities")
    assert not (tmp_path / "out").exists()
