"""``imaging train --init``: what is taken from a model, what is new, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apps.imaging.cli import parser
from apps.imaging.models.networks import registry
from apps.imaging.training.request import TrainRequest
from apps.imaging.training.starting_model import load_start
from common.errors import BadInput, UsageError
from common.model_folder import model_path
from tests.apps.imaging import in_process
from tests.messages import refused, says

SHIPPED = model_path("hippocampus")
LABELS = {"background": 0, "Anterior": 1, "Posterior": 2}
OPTIONS = ("--init", SHIPPED, "--set", "learning_rate=1e-6", "--amp", "off", "--fold", "0/2", "--json")


def test_weights_of_the_same_shape_are_taken() -> None:
    manifest = json.loads((SHIPPED / "model.json").read_text())
    arguments = manifest["network"]["arguments"]
    network = registry.build(manifest["network"]["name"], {**arguments, "out_channels": 5})
    before = {name: tensor.clone() for name, tensor in registry.weights(network).items()}
    left, stored = load_start(network, SHIPPED), load_file(SHIPPED / "weights.safetensors")
    assert left and all(before[name].shape[0] == 5 for name in left)
    for name, tensor in registry.weights(network).items():
        assert torch.equal(tensor, before[name] if name in left else stored[name].float()), name


@pytest.fixture
def cases(dataset: Callable[[str], Path], tmp_path: Path) -> Path:
    """Two real cases; the shipped model was trained on both or on neither, which does not matter here."""
    source, folder = dataset("msd-hippocampus"), tmp_path / "cases"
    for path in sorted((source / "labelsTr").glob("*.nii.gz"))[:2]:
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(source / part / path.name, folder / part)
    described = {"channel_names": {"0": "MRI"}, "labels": LABELS, "file_ending": ".nii.gz"}
    for path in (folder / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def test_a_training_starts_as_good_as_its_model(cases: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    results, lines = in_process.done("train", cases, "-o", model, "--steps", 1, *OPTIONS)
    says("\n".join(lines), "starting from the weights of hippocampus")
    assert results["metrics"]["mean_dice"] > 0.8
    ours, theirs = (json.loads((folder / "model.json").read_text()) for folder in (model, SHIPPED))
    assert all(ours[name] == theirs[name] for name in ("network", "spacing", "intensity", "channels", "labels"))
    assert "Started from: hippocampus" in (model / "card.md").read_text()


def request(*arguments: object) -> TrainRequest:
    args = parser().parse_args(["train", *map(str, arguments), "-o", "model", "-q"])
    return TrainRequest.of(args.command.request(args))


def describe(cases: Path, **fields: Any) -> None:
    path = cases / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_other_classes_make_another_head_only(cases: Path) -> None:
    describe(cases, labels={**LABELS, "Tail": 3})
    random, started = request(cases, "--fold", "0/2"), request(cases, *OPTIONS)
    manifest = json.loads((SHIPPED / "model.json").read_text())
    assert started.recipe.arguments == manifest["network"]["arguments"] | {"out_channels": 4}
    assert started.data.dataset.spacing == tuple(manifest["spacing"])
    assert started.settings["init"] == manifest["files"]["weights.safetensors"]["sha256"]
    assert random.settings["init"] == ""


def test_what_does_not_go_together(cases: Path, tmp_path: Path) -> None:
    with refused(UsageError, "--network unet", "segresnet"):
        request(cases, *OPTIONS, "--network", "unet")
    with refused(BadInput, "nowhere"):
        request(cases, *OPTIONS, "--init", tmp_path / "nowhere")
    for path in list((cases / "imagesTr").iterdir()):
        shutil.copy(path, path.with_name(path.name.replace("_0000", "_0001")))
    describe(cases, channel_names={"0": "MRI", "1": "CT"})
    with refused(BadInput, "2 in the data set", "1 in the model"):
        request(cases, *OPTIONS)
    imported = tmp_path / "imported"
    shutil.copytree(SHIPPED, imported)
    manifest = json.loads((imported / "model.json").read_text())
    (imported / "model.json").write_text(json.dumps(manifest | {"orientation": "file:zyx"}))
    with refused(BadInput, "imported", "imaging train made"):
        request(cases, *OPTIONS, "--init", imported)
