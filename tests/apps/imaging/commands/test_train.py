"""``imaging train`` as a user runs it: it learns, resumes, keeps its ceiling, and refuses what it cannot use."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common import model_folder
from common.memory.costs import cpu
from tests.apps.imaging import in_process
from tests.machine import patience, wait_until
from tests.messages import continued, missing, says
from tests.precision import AVX2
from tests.promise import kept

Runner = Callable[..., Any]
LABELS = {"0": "background", "1": "ball", "2": "shell"}


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def make(directory: Path, cases: int = 5, side: int = 20) -> Path:
    """A ball in a shell, brighter than the noise around."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1)
    for index in range(cases):
        distance = np.linalg.norm(grid - random.uniform(8, 12, 3), axis=-1)
        label = np.select([distance < 3, distance < 6], [1, 2], 0).astype(np.uint8)
        image = random.normal(0, 0.3, label.shape) + np.array([0, 2, 1])[label]
        write(directory / "imagesTr" / f"case_{index}.nii.gz", image.astype(np.float32))
        write(directory / "labelsTr" / f"case_{index}.nii.gz", label)
    (directory / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "labels": LABELS}))
    return directory


@pytest.fixture
def balls(tmp_path: Path) -> Path:
    return make(tmp_path / "balls")


def test_another_applications_model_is_not_replaced(balls: Path, tmp_path: Path, quick: Runner) -> None:
    output = tmp_path / "model"
    output.mkdir()
    model_folder.seal(output, application="recsys", kind="ials", files=[], fields={})
    before = (output / "model.json").read_bytes()
    done = quick("apps.imaging", "train", balls, "-o", output, "--steps", 1, "--memory", "1GiB")
    assert (done.code, done.err.count("\n")) == (2, 1)
    says(done.err, "-o", output, "another application")
    assert [path.name for path in output.iterdir()] == ["model.json"]
    assert (output / "model.json").read_bytes() == before


PLAIN = ("--patch", "16", "--fold", "0/5", "--amp", "off", "--micro-batch", "2", "--cache", "memory", "--json")
SMALL = ("--layers", "init_filters=8", "--layers", "blocks_down=1,1", "--layers", "blocks_up=1")
FAST = (*PLAIN, *SMALL)


def raw(source: Path, folder: Path, cases: int = 10) -> Path:
    """Real cases as nnU-Net's raw data set, whose second channel shows the labels with noise."""
    for path in sorted((source / "labelsTr").glob("*.nii.gz"))[:cases]:
        label = nib.load(path)
        classes = np.asanyarray(label.dataobj).astype(np.uint8)
        shown = classes + np.random.default_rng(0).normal(0, 0.1, classes.shape).astype(np.float32)
        classes[:, :, -4:] = 3  # nobody labelled these planes
        for part, name, values in (
            ("labelsTr", path.name, classes),
            ("imagesTr", path.name.replace(".nii", "_0001.nii"), shown.astype(np.float32)),
        ):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, label.affine), folder / part / name)
        shutil.copy(source / "imagesTr" / path.name, folder / "imagesTr" / path.name.replace(".nii", "_0000.nii"))
    labels = {"background": 0, "Anterior": 1, "Posterior": 2, "ignore": 3}
    described = {"channel_names": {"0": "MRI", "1": "shown"}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def test_a_few_steps_on_real_cases_learn(dataset: Callable[[str], Path], tmp_path: Path, run: Runner, quick: Runner):
    folder, model = raw(dataset("msd-hippocampus"), tmp_path / "Dataset004_Hippocampus"), tmp_path / "model"
    amp = "bf16" if cpu.precisions("torch").get("bf16") == "native" else "off"
    # In so few steps, a larger learning rate finds the background only.
    chosen = ("--steps", 24, "--set", "learning_rate=0.001", "--set", "validation_cases=0")
    options = ("--patch", "32,48,32", "--fold", "0/5", "--amp", amp, "--memory", "1GiB", "--json")
    # Planned first: a run that has to measure its costs counts the child that measures them too.
    command = ("apps.imaging", "train", folder, "-o", model, *chosen, *options)
    planned = quick(*command, "--dry-run")
    assert planned.code == 0 and not model.exists(), planned.err
    done = run(*command)
    assert done.code == 0, done.err
    record = done.record
    assert record["results"]["steps"] == 24
    held_out = record["results"]["metrics"]
    assert held_out["cases"] == 2 and held_out["mean_dice"] > 0.2  # untrained: below 0.05
    kept(record)
    plan = record["plan"]
    assert plan["knobs"]["allocator"] == "roomy"
    assert plan["predicted_peak_bytes"] + plan["reserve_bytes"] <= 1.15 * record["measured"]["peak_bytes"]

    names = {"model.json", "weights.safetensors", "network.onnx", "card.md", "run.json"}
    assert {path.name for path in model.iterdir()} == names
    assert sum(path.stat().st_size for path in model.iterdir()) < 8_000_000
    manifest = json.loads((model / "model.json").read_text())
    assert manifest["channels"] == ["MRI", "shown"] and manifest["further_intensity"] == [[{"op": "zscore"}]]
    assert [label["name"] for label in manifest["labels"]] == ["background", "Anterior", "Posterior"]
    _engines_agree(model)

    first, sixth = sorted((folder / "imagesTr").glob("*_0000.nii.gz"))[::5]  # those that were held out
    out = tmp_path / "out"
    in_process.done("infer", first, sixth, "-m", model, "-o", out)
    dice = [
        2 * ((guess == n) & (real == n)).sum() / ((guess == n).sum() + (real == n).sum())
        for n in (1, 2)
        for guess, real in (_labelled(out, folder, first), _labelled(out, folder, sixth))
    ]
    assert np.mean(dice) == pytest.approx(held_out["mean_dice"], abs=0.1)


def _labelled(out: Path, folder: Path, image: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels found and true, where somebody labelled."""
    name = image.name.replace("_0000", "")
    found, real = (np.asanyarray(nib.load(place / name).dataobj) for place in (out, folder / "labelsTr"))
    return found[real < 3], real[real < 3]


def _engines_agree(model: Path) -> None:
    import openvino as ov
    import torch

    from apps.imaging.models.model_folder import torch_network

    image = np.random.default_rng(0).standard_normal((1, 2, 32, 48, 32), np.float32)
    core = ov.Core()
    compiled = core.compile_model(core.read_model(model / "network.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.inference_mode():
        expected = torch_network(model, "features")(torch.from_numpy(image)).numpy()
    assert np.abs(compiled(image)[0] - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


def start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "apps.imaging", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


LASTING = ("--set", "ema=0.9", "--set", "keep=best", "--set", "schedule=poly")
"""Choices that a checkpoint has to remember: the average, and the best validation so far."""
STEPS = "64"
"""So many that a training is still at work when it is stopped after its first checkpoint."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, quick: Runner) -> tuple[Path, Any]:
    """A data set, and a training on it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = quick(
        "apps.imaging", "train", make(folder / "balls"), "-o", folder / "model", "--steps", STEPS, *FAST, *LASTING
    )
    assert done.code == 0, done.err
    return folder, done.record


@pytest.mark.parametrize(
    ("end", "cache"), [(signal.SIGKILL, "disk"), (signal.SIGTERM, "compressed")], ids=["kill-disk", "term-compressed"]
)
def test_a_stopped_training_goes_on_to_the_same_weights_wherever_its_cases_are(
    undisturbed: tuple[Path, Any], tmp_path: Path, quick: Runner, end: signal.Signals, cache: str
):
    (folder, record), out = undisturbed, tmp_path / "stopped"
    options = [str(folder / "balls"), "--steps", STEPS, *FAST, *LASTING, "--cache", cache, "-o", str(out)]
    child = start(options)
    checkpoint = out / ".training" / "last.safetensors"
    wait_until(checkpoint.is_file, seconds=120, alive=child)
    if end == signal.SIGKILL:
        os.killpg(child.pid, end)
    else:
        child.send_signal(end)
    _, err = child.communicate(timeout=patience(60))
    assert child.returncode == (-9 if end == signal.SIGKILL else 130), err
    assert checkpoint.is_file() and not (out / "model.json").exists()

    again = quick("apps.imaging", "train", *options)
    assert again.code == 0, again.err
    continued(again.err, "step")
    if cache == "compressed":
        says(again.err, "4 of 4 cases", "prepared before")
    assert (record["plan"]["knobs"]["cache"], again.record["plan"]["knobs"]["cache"]) == ("memory", cache)
    assert not checkpoint.exists()
    for name in ("weights.safetensors", "network.onnx"):
        assert (out / name).read_bytes() == (folder / "model" / name).read_bytes()
    for result in ("metrics", "history"):
        assert again.record["results"][result] == record["results"][result]


def test_a_training_that_gets_no_better_ends_early_and_its_course_is_written(
    balls: Path, tmp_path: Path, run: Runner
) -> None:
    """What changes the result is the user's: 8-bit AdamW and Dice of the batch, in accumulated micro-batches, are
    planned, trained, and in the plan as given."""
    never = ("--set", "learning_rate=0", "--set", "patience=2", "--tensorboard")
    chosen = ("--set", "optimizer=adamw8bit", "--set", "dice=batch", "--set", "clip=0", "--accumulate", 2)
    options = ("--patch", "16", "--fold", "0/5", "--amp", "off", "--cache", "memory", "--json", *SMALL)
    done = run("apps.imaging", "train", balls, "-o", tmp_path / "m", "--steps", 16, *options, *chosen, *never)
    assert done.code == 0, done.err
    kept(done.record)
    knobs = done.record["plan"]["knobs"]
    assert knobs["accumulate"] == 2 and knobs["step_in_backward"] == "off"  # two micro-batches need all gradients
    results = done.record["results"]
    assert results["steps"] == 6  # the first of eight validations is the best, two more are no better
    says(done.err, "step 6", "2 validations")
    assert [entry["step"] for entry in results["history"] if "dice" in entry] == [2, 4, 6]
    assert all(math.isfinite(entry["loss"]) for entry in results["history"] if "loss" in entry)
    assert len(list((tmp_path / "m" / "tensorboard").glob("events*"))) == 1


def test_a_ceiling_that_is_too_small_names_one_that_works(balls: Path, tmp_path: Path, run: Runner):
    command = ("apps.imaging", "train", balls, "-o", tmp_path / "m", "--steps", 2, *PLAIN)
    refused = run(*command, "--memory", "300MiB")
    assert refused.code == 3, refused.err
    smallest = refused.record["smallest_feasible_bytes"]
    assert f"--memory {smallest >> 20}MiB" in refused.err
    done = run(*command, "--memory", smallest)
    assert done.code == 0, done.err
    assert done.record["measured"]["peak_bytes"] <= smallest


def damage(balls: Path, how: str) -> tuple[str, ...]:
    """Break case_1; returns the facts that the message must have."""
    image, label = (balls / part / "case_1.nii.gz" for part in ("imagesTr", "labelsTr"))
    if how == "shape":
        write(label, np.zeros((20, 20, 19), np.uint8))
        return "case_1", "20x20x19", "20x20x20"
    if how == "values":
        write(label, np.full((20, 20, 20), 7, np.uint8))
        return "case_1", "label", "7", "dataset.json"
    if how == "truncated":
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
        return "case_1.nii.gz", "truncated"
    if how == "4d":
        write(image, np.zeros((20, 20, 20, 2), np.float32))
        return "case_1.nii.gz", "three-dimensional"
    if how == "no label":
        label.unlink()
        return "case_1", "label"
    if how == "empty":
        image.write_bytes(b"")
        return "case_1.nii.gz", "empty"
    (balls / "dataset.json").write_text('{"labels": {"0": "background", "one": "ball"')
    return "dataset.json", "JSON"


@pytest.mark.parametrize("how", ["shape", "values", "truncated", "4d", "no label", "empty", "json"])
def test_bad_cases_are_named(balls: Path, tmp_path: Path, how: str):
    from apps.imaging.training.data.dataset import read_dataset
    from apps.imaging.training.data.prepared import load_case
    from common.errors import BadInput

    facts = damage(balls, how)
    with pytest.raises(BadInput) as caught:
        found = read_dataset(balls)
        for case in found.cases:
            load_case(case, found, [[{"op": "zscore"}]])
    says(caught.value, *facts)
    assert "case_1" not in caught.value.public


@pytest.mark.parametrize("how", ["shape", "truncated"])  # found in the headers, and in the voxels
def test_bad_cases_end_the_command_with_one_line(balls: Path, tmp_path: Path, quick: Runner, how: str):
    facts = damage(balls, how)
    done = quick("apps.imaging", "train", balls, "-o", tmp_path / "m", "--steps", 2, *FAST)
    assert done.code == 4
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert len(lines) == 1
    says(lines[0], *facts)
    left = {path.name for path in (tmp_path / "m").glob("*")}
    assert left <= {"run.json"}


def test_a_training_by_the_clock_steps_for_so_long_on_what_is_not_bad(balls: Path, tmp_path: Path, quick: Runner):
    damage(balls, "shape")
    write(balls / "labelsTr" / "case_2.nii.gz", np.full((20, 20, 20), 7, np.uint8))
    clock = ("--time", "3s", "--set", "validation_cases=0", "--skip-bad")
    done = quick("apps.imaging", "train", balls, "-o", tmp_path / "m", *clock, *FAST)
    assert done.code == 0, done.err
    phases = [(phase["name"], phase["seconds"]) for phase in done.record["measured"]["phases"]]
    assert 1.5 < sum(seconds for name, seconds in phases if name == "train") < patience(3)  # without its checkpoints
    assert [name for name, _ in phases].count("validate") == 1  # none between the steps, since no case is for that
    assert done.record["results"]["steps"] >= 1 and done.record["results"]["metrics"]["cases"] == 1
    for case in ("case_1", "case_2"):
        assert [line for line in done.err.splitlines() if not missing(line, "skipped", case)], done.err


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("--fold", "5/5"), ("K/N",)),
        (("--patch", "17"), ("multiple of 4",)),
        (("--set", "learning_rte=1"), ("--set", "learning_rte", "learning_rate")),
        (("--set", "mirror=up"), ("mirror",)),
        (("--set", "optimizer=adam"), ("optimizer", "'adam'", "adamw")),
        (("--set", "dice=both"), ("dice", "sample", "batch")),
        (("--set", "schedule=step"), ("schedule", "cosine", "poly")),
        (("--set", "ema=1"), ("ema", "below 1")),
        (("--set", "keep=best", "--no-fold"), ("keep=best", "fold")),
        (("--micro-batch", "4"), ("batch",)),
        (("--time", "soon"), ("30min",)),
        (("--memory", "lots"), ("'lots'", "size")),
    ],
)
def test_usage_errors(balls: Path, tmp_path: Path, quick: Runner, arguments: tuple[str, ...], facts: tuple[str, ...]):
    done = quick("apps.imaging", "train", balls, "-o", tmp_path / "m", *arguments)
    assert done.code == 2
    says(done.err, *facts)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_without_kernels_is_refused(balls: Path, tmp_path: Path, run: Runner, precision: str):
    done = run("apps.imaging", "train", balls, "-o", tmp_path / "m", "--amp", precision, env=AVX2)
    assert done.code == 2 and len(done.err.splitlines()) == 1
    says(done.err, f"--amp {precision}", "off")
    assert not (tmp_path / "m").exists()


def test_a_missing_data_set(tmp_path: Path, quick: Runner):
    done = quick("apps.imaging", "train", tmp_path / "nowhere", "-o", tmp_path / "m")
    assert done.code == 4 and "imagesTr" in done.err


def test_all_folds_are_trained_and_joined(balls: Path, tmp_path: Path, run: Runner, quick: Runner) -> None:
    """Each with its own record below the ceiling; a folder with folds of other options is refused."""
    out = tmp_path / "folds"
    command = ("train", balls, "--all-folds", "2", "--patch", "16", "--amp", "off", "--memory", "800MiB", *SMALL)
    done = run("apps.imaging", *command, "--steps", "2", "-o", out)
    assert done.code == 0, done.err
    records = [json.loads((out / name / "run.json").read_text()) for name in ("fold_0", "fold_1", "ensemble")]
    for record in records:
        assert record["within_budget"] and record["budget"]["host_bytes"] == 800 << 20
    counted = [record["results"]["metrics"]["cases"] for record in records[:2]]
    assert sum(counted) == 5
    validated = records[2]["results"]["cross_validation"]
    dice = [record["results"]["metrics"]["per_class"]["shell"] for record in records[:2]]
    assert validated["cases"] == 5
    assert validated["per_class"]["shell"] == pytest.approx(np.average(dice, weights=counted), abs=1e-4)
    planned = quick("apps.imaging", *command, "--steps", "2", "-o", tmp_path / "planned", "--dry-run")
    assert planned.code == 0 and planned.out.count("predicted") == 2 and not (tmp_path / "planned").exists()
    says(planned.err, "fold 0/2", "fold 1/2")
    before = (out / "fold_0" / "weights.safetensors").stat().st_mtime_ns
    again = quick("apps.imaging", *command, "--steps", "2", "-o", out)
    assert again.code == 0, again.err
    says(again.err, "fold 0/2", "fold 1/2", "trained before")
    assert (out / "fold_0" / "weights.safetensors").stat().st_mtime_ns == before
    refused = quick("apps.imaging", *command, "--steps", "3", "-o", out)
    assert (refused.code, refused.err.count("\n")) == (4, 1)
    says(refused.err, out, "other options", "--steps")
    for option in ("--json", "--fold=0/2", "--all-folds=1"):
        assert quick("apps.imaging", *command, "-o", out, option).code == 2
    own = quick("apps.imaging", "ensemble", out / "fold_0", out / "fold_1", "-o", out / "fold_0")
    assert own.code == 2
    says(own.err, out / "fold_0", "one of the models")
    assert (out / "fold_0" / "weights.safetensors").stat().st_mtime_ns == before


def test_a_mistyped_training_of_all_folds_leaves_nothing_that_matters(
    balls: Path, tmp_path: Path, quick: Runner
) -> None:
    """Options are compared only with those of folds that are there, and too few cases end it at once."""
    out = tmp_path / "folds"
    absent = quick("apps.imaging", "train", tmp_path / "nowhere", "--all-folds", "2", "-o", out)
    assert absent.code == 4
    few = quick("apps.imaging", "train", f"{balls}/", "--all-folds", "9", "--steps", "2", "-o", out)
    assert few.code == 4 and not [*out.glob("fold_0")]
    says(few.err, "fold 8/9", 5)
