"""``imaging train`` over the ranks of PyTorch's launcher, on real cases."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.machine import wait_until
from tests.messages import continued, says
from tests.ranks import children, ended, launch

CASES, STEPS = 5, 8
CHOSEN = ("--patch", "32,40,32", "--amp", "off", "--micro-batch", "1", "--threads", "1", "--memory", "1GiB")
LASTING = ("--set", "batch=3", "--set", "ema=0.9", "--set", "keep=best", "--set", "validation_cases=1")
NETWORK = ("--layers", "init_filters=8", "--layers", "blocks_down=1,1", "--layers", "blocks_up=1")


@pytest.fixture(scope="module")
def cases(dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some cases of the hippocampus."""
    source, folder = dataset("msd-hippocampus"), tmp_path_factory.mktemp("ranks") / "cases"
    for path in sorted((source / "labelsTr").glob("*.nii.gz"))[:CASES]:
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(source / part / path.name, folder / part / path.name)
    described = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def options(cases: Path, out: Path, steps: int = STEPS) -> list[str]:
    """Arguments of the training."""
    return ["train", str(cases), "-o", str(out), "--steps", str(steps), *CHOSEN, *LASTING, *NETWORK]


def losses(record: dict[str, Any]) -> list[float]:
    """The mean losses of a training's course."""
    return [entry["loss"] for entry in record["results"]["history"] if "loss" in entry]


def test_two_ranks_train_and_a_killed_one_is_started_again(cases: Path, tmp_path: Path) -> None:
    """That their course is that of one process, ``tests/apps/imaging/training/test_ranks.py`` says."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, said = ended(launch(2, "apps.imaging", options(cases, whole)))
    assert code == 0, said
    assert said.count("\n") == 0, said  # the first rank's last line
    record = json.loads((whole / "run.json").read_text())
    ranks, plan = record["results"]["ranks"], record["plan"]
    assert ranks["size"] == 2 and max(ranks["peak_bytes"]) <= plan["predicted_peak_bytes"] + plan["reserve_bytes"]
    assert (plan["knobs"]["micro_batch"], plan["knobs"]["accumulate"]) == (1, 2)  # of three samples
    assert len(losses(record)) == STEPS
    assert record["results"]["metrics"]["mean_dice"] > 0

    launched = launch(2, "apps.imaging", options(cases, broken), "--max-restarts", "1")
    wait_until((broken / ".training" / "last.safetensors").is_file, seconds=120, alive=launched)
    os.kill(dict(children(broken))["1"], signal.SIGKILL)
    code, said = ended(launched)
    assert code == 0, said
    assert said.count("rank 1") == 1 and "another rank" not in said, said
    says(said.splitlines()[0], "rank 1", "killed", "continues")
    continued(said)
    for name in ("weights.safetensors", "network.onnx"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert {path.name for path in broken.iterdir()} == {path.name for path in whole.iterdir()}
    assert losses(json.loads((broken / "run.json").read_text())) == losses(record)


def test_shared_states_of_killed_ranks_are_continued_by_one_process(cases: Path, quick: Any, tmp_path: Path) -> None:
    """Two ranks have half the states each; the course is that of one process, which then ends it."""
    alone, out, plan = tmp_path / "alone", tmp_path / "out", tmp_path / "plan.json"
    chosen = {"micro_batch": 1, "accumulate": 2, "amp": "off", "checkpoint": "none", "step_in_backward": "off"}
    knobs = chosen | {"cache": "memory", "allocator": "heap", "states": "shared"}
    plan.write_text(json.dumps({"workload": "imaging train", "knobs": knobs}))
    even = ("--set", "batch=4")
    launched = launch(2, "apps.imaging", [*options(cases, out), *even, "--plan", plan])
    wait_until((out / ".training" / "last.safetensors").is_file, seconds=120, alive=launched)
    os.kill(dict(children(out))["1"], signal.SIGKILL)
    code, said = ended(launched)
    assert code != 0
    assert said.count("\n") == 0, said
    says(said, "rank 1", "killed", "last checkpoint")
    done = quick("apps.imaging", *options(cases, out), *even)
    assert done.code == 0, done.err
    continued(done.err)
    assert quick("apps.imaging", *options(cases, alone), *even).code == 0
    found, expected = (losses(json.loads((folder / "run.json").read_text())) for folder in (out, alone))
    assert len(found) == STEPS and found == pytest.approx(expected, rel=1e-3)
