"""``imaging train`` over the ranks of PyTorch's launcher, on real cases."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.machine import wait_until
from tests.messages import continued, says

Runner = Callable[..., Any]
CASES, STEPS, SECONDS = 5, 16, 240
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


@pytest.fixture(scope="module")
def alone(cases: Path, run: Runner) -> dict[str, Any]:
    """The record of the training by one process."""
    done = run("apps.imaging", *options(cases, cases.parent / "alone"), "--json")
    assert done.code == 0, done.err
    record: dict[str, Any] = done.record
    return record


def launch(ranks: int, arguments: list[str], *launcher: str) -> subprocess.Popen[str]:
    """Start ``torchrun``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *launcher]
    variables = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-m", "apps.imaging", *arguments],
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(launched: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the launcher; returns its exit code and our lines."""
    try:
        _, err = launched.communicate(timeout=SECONDS)
    finally:
        if launched.poll() is None:
            os.killpg(launched.pid, signal.SIGKILL)
    return launched.returncode, "\n".join(line for line in err.splitlines() if line.startswith("imaging train"))


def children(out: Path) -> Iterator[tuple[str, int]]:
    """Yield the ranks of the training that writes into ``out``, with the pids of the processes that compute."""
    for place in Path("/proc").iterdir():
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            if str(out).encode() in words and b"-P" in words:
                variables = (place / "environ").read_bytes().split(b"\0")
                yield next(value.decode()[5:] for value in variables if value.startswith(b"RANK=")), int(place.name)
        except (OSError, StopIteration):
            continue


def losses(record: dict[str, Any]) -> list[float]:
    """The mean losses of a training's course."""
    return [entry["loss"] for entry in record["results"]["history"] if "loss" in entry]


def test_two_ranks_train_as_one_process_and_a_killed_one_is_started_again(
    cases: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, said = ended(launch(2, options(cases, whole)))
    assert code == 0, said
    assert said.count("\n") == 0, said  # the first rank's last line
    record = json.loads((whole / "run.json").read_text())
    ranks, plan = record["results"]["ranks"], record["plan"]
    assert ranks["size"] == 2 and max(ranks["peak_bytes"]) <= plan["predicted_peak_bytes"] + plan["reserve_bytes"]
    assert (plan["knobs"]["micro_batch"], plan["knobs"]["accumulate"]) == (1, 2)  # of three samples
    assert len(losses(record)) == STEPS
    assert losses(record) == pytest.approx(losses(alone), rel=1e-3)
    assert record["results"]["metrics"]["mean_dice"] == pytest.approx(
        alone["results"]["metrics"]["mean_dice"], abs=0.01
    )

    launched = launch(2, options(cases, broken), "--max-restarts", "1")
    wait_until((broken / ".training" / "last.safetensors").is_file, seconds=120, alive=launched)
    os.kill(dict(children(broken))["1"], signal.SIGKILL)
    code, said = ended(launched)
    assert code == 0, said
    says(said, "rank 1", "killed", "another rank has ended")
    continued(said)
    for name in ("weights.safetensors", "network.onnx"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert {path.name for path in broken.iterdir()} == {path.name for path in whole.iterdir()}
    assert losses(json.loads((broken / "run.json").read_text())) == losses(record)
