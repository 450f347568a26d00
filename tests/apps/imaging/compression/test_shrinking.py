"""``imaging compress`` for a smaller network: a folder that runs and trains on, and clear refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from apps.imaging.compression import shrinking
from apps.imaging.compression.options import CompressOptions
from apps.imaging.compression.shrinking import ShrinkRequest
from apps.imaging.exporters.monai_bundle import check_exportable
from apps.imaging.models.ensemble import write_ensemble
from apps.imaging.models.model_folder import TORCH_NETWORK, read_model
from apps.imaging.models.networks import registry
from apps.imaging.models.stored_weights import stored_parameters
from apps.imaging.training.starting_model import load_start, read_start
from common.engines.registry import open_engine
from common.errors import BadInput, UsageError
from common.memory.plan.plan import Plan
from tests.apps.imaging.helpers import random_model, write_nifti
from tests.messages import refused, says
from tests.schemas import checked_record

TILE = (16, 16, 16)


class Phases:
    """A session of a test: phases and messages lead nowhere."""

    threads = 1

    def __init__(self) -> None:
        self.said: list[str] = []

    def phase(self, name: str) -> Any:
        return self

    def progress(self, **about: object) -> Any:
        return self

    def update(self, count: int) -> None: ...

    def say(self, message: str) -> None:
        self.said.append(message)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None: ...


def shrunk(model: Path, output: Path, session: Phases | None = None, **options: Any) -> dict[str, Any]:
    """Make a model smaller in this process; returns the results."""
    request = ShrinkRequest.of(CompressOptions(model=model, output=output, threads=1, **options), model)
    return dict(shrinking.run(request, session or Phases()))  # type: ignore[arg-type]


def logits(directory: Path, engine: str) -> Any:
    head = read_model(directory).head
    opened = open_engine(
        directory, name=engine, precision="float32", tile=TILE, batch=1, threads=1, head=head, builder=TORCH_NETWORK
    )
    return np.array(opened(np.random.default_rng(0).standard_normal((1, 1, *TILE)).astype(np.float32)))


@pytest.mark.parametrize("network", ["segresnet", "unet"])
def test_a_smaller_network_runs_alike_in_all_engines_and_trains_on(network: str, tmp_path: Path) -> None:
    random_model(tmp_path / "model", network=network, patch=TILE)
    before = (tmp_path / "model" / "model.json").read_bytes()
    results = shrunk(tmp_path / "model", tmp_path / "out", prune=0.5, low_rank=0.5, half=True)
    assert (tmp_path / "model" / "model.json").read_bytes() == before
    assert results["parameters_after"] == stored_parameters(tmp_path / "out") < 0.5 * results["parameters_before"]
    assert results["bytes_after"] < 0.3 * results["bytes_before"]  # half as many, and half as long
    assert results["network_bytes_after"] < 0.55 * results["network_bytes_before"]
    answers = [logits(tmp_path / "out", engine) for engine in ("torch", "openvino", "onnxruntime")]
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=1e-3 * float(np.abs(answers[0]).max()))
    model = read_start(tmp_path / "out", None)
    started = registry.build(model.network, {**model.arguments, "out_channels": 5})
    left = load_start(started, tmp_path / "out")
    head = {"segresnet": 2, "unet": 3}[network]  # UNet's last unit has a residual convolution
    assert 0 < len(left) <= head + 2 and started(torch.zeros(2, 1, *TILE)).shape[1] == 5


def test_half_precision_loses_nothing_of_weights_that_were_stored_in_it(tmp_path: Path) -> None:
    random_model(tmp_path / "float", patch=TILE)
    shrunk(tmp_path / "float", tmp_path / "model", half=True)
    session = Phases()
    results = shrunk(tmp_path / "model", tmp_path / "out", session, half=True)
    assert results["bytes_after"] == results["bytes_before"]
    says(session.said[-1], "no file is smaller", "--fp16")
    ours, theirs = (load_file(tmp_path / name / "weights.safetensors") for name in ("out", "model"))
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == torch.float16 for name in ours)
    assert np.array_equal(logits(tmp_path / "out", "openvino"), logits(tmp_path / "model", "openvino"))
    sizes = [(tmp_path / name / "network.onnx").stat().st_size for name in ("out", "float")]
    assert sizes[0] < 0.75 * sizes[1]


def test_members_of_an_ensemble_may_be_pruned(tmp_path: Path) -> None:
    for seed in (0, 1):
        random_model(tmp_path / f"model{seed}", patch=TILE, seed=seed)
        shrunk(tmp_path / f"model{seed}", tmp_path / f"out{seed}", prune=0.5)
    models = [read_model(tmp_path / f"out{seed}") for seed in (0, 1)]
    write_ensemble(models, tmp_path / "joined")
    expected = np.mean([logits(model.directory, "torch") for model in models], 0)
    np.testing.assert_allclose(logits(tmp_path / "joined", "torch"), expected, atol=5e-3)


@pytest.mark.parametrize("importance", ["taylor", "zeros"])
def test_images_decide_which_channels_go(importance: str, tmp_path: Path) -> None:
    random_model(tmp_path / "model", patch=TILE, spacing=(1.0, 1.0, 1.0))
    (tmp_path / "images").mkdir()
    values = np.random.default_rng(0).integers(0, 900, (20, 18, 17)).astype(np.int16)
    write_nifti(tmp_path / "images" / "a.nii.gz", values)
    options = {"prune": 0.5, "calibration": tmp_path / "images", "tiles": 2}
    shrunk(tmp_path / "model", tmp_path / "measured", importance=importance, **options)
    shrunk(tmp_path / "model", tmp_path / "norm", prune=0.5)
    ours, others = (load_file(tmp_path / name / "weights.safetensors") for name in ("measured", "norm"))
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in others.items()
    }
    assert any(not torch.equal(ours[name], others[name]) for name in ours)
    for value in (7.0, np.nan):
        write_nifti(tmp_path / "images" / "a.nii.gz", np.full(values.shape, value, np.float32))
        with refused(BadInput, "--calibration", "1 tiles", "one value"):
            shrunk(tmp_path / "model", tmp_path / "none", importance=importance, **options | {"tiles": 1})


def test_blocks_of_least_effect_go(tmp_path: Path) -> None:
    arguments = {"init_filters": 8, "blocks_down": [2, 2], "blocks_up": [1]}
    network = random_model(tmp_path / "model", patch=TILE, arguments=arguments)
    blocks = shrunk(tmp_path / "model", tmp_path / "out", drop_blocks=2)
    recipe = read_model(tmp_path / "out").arguments[registry.RESHAPED]
    assert len(recipe) == 2 and all(entry == {"skip": True} for entry in recipe.values())
    gone = sum(p.numel() for name in recipe for p in network.get_submodule(name).parameters())
    assert blocks["parameters_before"] - blocks["parameters_after"] == gone
    with refused(BadInput, "--drop-blocks 5", "5 residual blocks"):
        shrunk(tmp_path / "model", tmp_path / "none", drop_blocks=5)
    random_model(tmp_path / "other", network="dynunet", patch=TILE)
    with refused(BadInput, "dynunet", "no such block"):
        shrunk(tmp_path / "other", tmp_path / "none", drop_blocks=1)


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    random_model(tmp_path / "model", patch=TILE)
    paths = {"model": tmp_path / "model", "output": tmp_path / "out", "threads": 1}
    for options, facts in (
        ({}, ("nothing to do", "--prune")),
        ({"prune": 0.5, "importance": "taylor"}, ("--importance taylor", "--calibration")),
        ({"half": True, "importance": "zeros", "calibration": tmp_path}, ("--importance zeros", "--prune")),
        ({"half": True, "calibration": tmp_path}, ("--calibration",)),
        ({"int8": True}, ("--int8", "--calibration")),
    ):
        with refused(UsageError, *facts):
            CompressOptions(**paths, **options)  # type: ignore[arg-type]
    shrunk(tmp_path / "model", tmp_path / "low", low_rank=0.5)
    with refused(UsageError, "low rank already"):
        shrunk(tmp_path / "low", tmp_path / "out", prune=0.5)
    with refused(BadInput, "--prune 0.999", "at most"):
        shrunk(tmp_path / "model", tmp_path / "out", prune=0.999)
    with refused(BadInput, "--low-rank: 500 parameters are too few"):
        shrunk(tmp_path / "model", tmp_path / "out", low_rank=2000)
    assert not (tmp_path / "out" / "model.json").exists()
    with refused(UsageError, "made smaller", "--as onnx"):
        check_exportable(read_model(tmp_path / "low"), tmp_path / "low")


def test_stages_follow_each_other_and_are_not_repeated(
    run: Callable[..., Any], quick: Callable[..., Any], dataset: Callable[[str], Path], tmp_path: Path
) -> None:
    random_model(tmp_path / "model", patch=TILE)
    words = ["compress", tmp_path / "model", "-o", tmp_path / "out", "--prune", "0.5", "--finetune", tmp_path / "data"]
    words += ["--fold", "0/3", "--threads", "1", "--set", "learning_rate=1e-4", "--memory", "1GiB"]
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / part).mkdir(parents=True)
    done = run("apps.imaging", *words, "--steps", "1")
    assert done.code == 4, done.err  # there are no cases to train on yet, and the first stage stays
    source = dataset("msd-hippocampus")
    for path in sorted((source / "labelsTr").glob("*.nii.gz"))[:3]:
        for part in ("imagesTr", "labelsTr"):
            (tmp_path / "data" / part / path.name).symlink_to(source / part / path.name)
    smaller = tmp_path / "out" / ".stages" / "smaller"
    made = (smaller / "model.json").stat().st_mtime_ns
    record = checked_record(json.loads((smaller / "run.json").read_text()))
    peaks = {phase["name"]: phase["peak_bytes"] for phase in record["measured"]["phases"]}
    measured = max(peaks["shrink"], peaks["export"])
    phases = Plan.received(record["plan"]).footprint.phases()  # the first run also measures costs
    assert measured <= max(phases["shrink"], phases["export"]) <= 1.1 * measured
    other = quick("apps.imaging", *words, "--steps", "2")
    assert other.code == 4
    says(other.err, "--steps")
    done = quick("apps.imaging", *words, "--steps", "1")
    assert done.code == 0, done.err
    says(done.err, "stage 1", "done before", "stage 2", "starting from the weights of smaller", "after")
    assert made and not smaller.exists()
    model = read_model(tmp_path / "out")
    assert [label.name for label in model.labels] == ["background", "class 1", "class 2"]
    assert registry.RESHAPED in model.arguments
    says((tmp_path / "out" / "card.md").read_text(), "Soft labels: of model")
