"""``imaging infer``'s request: what is checked before anything is read, and what the digest of a study depends on."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.compression.options import CompressOptions
from apps.imaging.inference.discovery import StudyInputs
from apps.imaging.inference.options import InferOptions
from apps.imaging.inference.outputs import OutputRequest
from apps.imaging.inference.request import InferRequest, LabelSettings
from common.errors import UsageError
from tests.apps.imaging.helpers import random_model, write_nifti
from tests.messages import refused

NOWHERE = {"inputs": (Path("absent.nii.gz"),), "model": Path("absent-model"), "output": Path("absent-out")}


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"output": Path("./absent.nii.gz")}, ["-o absent.nii.gz", "input"]),
        ({"device": "cuda:1", "engine": "openvino"}, ["--device cuda:1", "openvino", "--engine torch"]),
        ({"stow": "https://server/dicom-web"}, ["--stow", "dicom-seg", "dicom-rtstruct"]),
        ({"stow": "https://user:word@server/dicom-web", "output_types": ("dicom-seg",)}, ["PEAKLINE_DICOMWEB_USER"]),
    ],
)
def test_options_that_contradict_each_other_are_refused_before_anything_is_read(
    changes: dict[str, Any], facts: list[str]
) -> None:
    InferOptions(**NOWHERE)
    with refused(UsageError, *facts) as refusal:
        InferOptions(**{**NOWHERE, **changes})
    assert "\n" not in str(refusal.value)


def test_a_model_is_not_compressed_into_itself() -> None:
    options: dict[str, Any] = {"int8": True, "calibration": Path("images"), "threads": 1}
    CompressOptions(model=Path("model"), output=Path("other"), **options)
    with refused(UsageError, "-o model/../model"):
        CompressOptions(model=Path("model"), output=Path("model/../model"), **options)


@pytest.fixture(scope="module")
def request_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that makes a request of changed options."""
    folder = tmp_path_factory.mktemp("request")
    random_model(folder / "model")
    values = np.random.default_rng(0).normal(size=(20, 24, 18)).astype(np.float32)
    image = write_nifti(folder / "image.nii.gz", values)

    def make(**changes: Any) -> InferRequest:
        options = {"inputs": (image,), "model": folder / "model", "output": folder / "out", "engine": "torch"}
        return InferRequest.of(InferOptions(**{**options, **changes}), folder / "model")

    return make


def test_every_declared_setting_changes_the_digest(request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of()
    settings, digests = request.label_settings, {request.digest("image")}
    for field in fields(LabelSettings):
        changed = replace(settings, **{field.name: "something else"})
        monkeypatch.setattr(InferRequest, "label_settings", changed)
        digests.add(request.digest("image"))
    assert len(digests) == 1 + len(fields(LabelSettings))


def test_what_is_written_changes_the_digest_but_not_that_of_the_labels(request_of: Any) -> None:
    request = request_of()
    whole, labels = {request.digest("image")}, {request.digest("image", outputs=False)}
    for field in fields(OutputRequest):
        other = replace(request, outputs=replace(request.outputs, **{field.name: ()}))
        if field.name == "labels":  # which decide both
            assert other.digest("image", outputs=False) not in labels
        else:
            labels.add(other.digest("image", outputs=False))
        whole.add(other.digest("image"))
    assert len(whole) == 1 + len(fields(OutputRequest)) and len(labels) == 1


def test_images_and_further_channels_change_the_digest(request_of: Any) -> None:
    request = request_of()
    digests = {
        request.digest("image"),
        request.digest("other"),
        request.digest("image", further=[]),
        request.digest("image", further=["second"]),
        request.digest("image", repair=["tilt"]),
    }
    assert len(digests) == 5
    assert request.digest("image") == request_of().digest("image")


@pytest.mark.parametrize(
    "changes",
    [
        {"fast": True},
        {"tile": (16, 16, 16)},
        {"overlap": 0.25},
        {"remove_small": 1.0},
        {"roi_subset": ("class 1",)},
        {"preview": True},
        {"statistics": True},
        {"output_types": ("nifti", "dicom-seg")},
    ],
)
def test_options_that_decide_the_outputs_reach_the_digest(request_of: Any, changes: dict[str, Any]) -> None:
    plain = request_of()
    if "dicom-seg" in changes.get("output_types", ()):  # of which a NIfTI image has none
        changed = replace(plain, outputs=replace(plain.outputs, types=changes["output_types"]))
    else:
        changed = request_of(**changes)
    assert changed.digest("image") != plain.digest("image")


@pytest.mark.parametrize("changes", [{"threads": 2}, {"batch": 2}, {"output": Path("elsewhere")}])
def test_options_that_only_decide_how_do_not(request_of: Any, changes: dict[str, Any]) -> None:
    assert request_of(**changes).digest("image") == request_of().digest("image")


def test_another_tile_is_laid_over_the_same_images(request_of: Any) -> None:
    request = request_of()
    smaller = request.with_tile((16, 16, 16))
    (grid,), (before,) = smaller.inputs.grids.values(), request.inputs.grids.values()
    assert smaller.model.tile == grid.tile == (16, 16, 16) and before.tile == (16, 24, 16)
    assert grid.volume is before.volume and len(grid.tiles) > len(before.tiles)
    assert smaller.digest("image") != request.digest("image")


def test_a_request_without_studies_has_an_empty_stage(request_of: Any) -> None:
    request = request_of()
    assert list(request.inputs.grids) == ["study-0001"] and request.inputs.scratch.is_dir()
    assert not StudyInputs().studies and not StudyInputs().grids
