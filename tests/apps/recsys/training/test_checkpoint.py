"""Real signals on real data: an interrupted or killed ``ials`` continues, and ends as if nothing had happened."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.models.als.factor_state import FactorState
from apps.recsys.training import checkpoint
from apps.recsys.training.checkpoint import FactorCheckpoint
from common.errors import BadInput, UsageError
from tests.apps.recsys import in_process
from tests.apps.recsys.interrupted import started, sweeps, wait_for
from tests.messages import continued, refused, says

Run = Callable[..., Any]
ITERATIONS = 40
"""So many that the training can be interrupted twice, however late this process is told of a checkpoint."""
SWEEPS = 2 * ITERATIONS
"""A sweep solves one side."""
OPTIONS = ("--model", "ials", "--factors", "32", "--split", "user-holdout", "--threads", "1", "--seed", "3")
OPTIONS += ("--set", f"iterations={ITERATIONS}")


@pytest.fixture(scope="module")
def undisturbed(quick: Run, dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of a run that nobody disturbed."""
    model = tmp_path_factory.mktemp("undisturbed") / "model"
    done = quick("apps.recsys", "train", dataset("ml-1m") / "ratings.csv.gz", "-o", model, *OPTIONS, "-q")
    assert done.code == 0, done.err
    return model


@pytest.mark.parametrize(
    ("place", "signals"),
    [("memory", (signal.SIGTERM, signal.SIGKILL)), ("disk", (signal.SIGKILL, signal.SIGINT))],
)
def test_a_disturbed_training_ends_as_an_undisturbed_one(
    run: Run,
    quick: Run,
    dataset: Callable[[str], Path],
    undisturbed: Path,
    tmp_path: Path,
    place: str,
    signals: tuple[int, int],
) -> None:
    interactions, model = dataset("ml-1m") / "ratings.csv.gz", tmp_path / "model"
    ceiling, options = "300MiB", list(OPTIONS)
    if place == "disk":
        planned = quick("apps.recsys", "train", interactions, "-o", model, *OPTIONS, "--dry-run", "--json").record[
            "plan"
        ]
        planned["knobs"]["fit_block"] = 1 << 18
        (tmp_path / "plan.json").write_text(json.dumps(planned))
        options += ["--plan", str(tmp_path / "plan.json")]
    state = model / ".training" / checkpoint.FILE
    reached = []
    for number in signals:
        before = sweeps(state)
        with started(interactions, model, ceiling, options) as process:
            wait_for(lambda before=before: sweeps(state) > before, process)  # type: ignore[misc]
            if number == signal.SIGTERM:
                process.send_signal(number)
            else:  # Ctrl-C in a terminal reaches the whole group too
                os.killpg(process.pid, number)
            ended = process.wait(60)
        assert number == signal.SIGKILL or ended == 130
        reached.append(sweeps(state))
        assert not (model / "model.json").exists()
    assert 0 < reached[0] < reached[1] < SWEEPS
    done = run("apps.recsys", "train", interactions, "-o", model, *options, "--memory", ceiling, "--json")
    assert done.code == 0, done.err
    continued(done.err, reached[-1])
    held = done.record["plan"]["knobs"]["fit_block"] >= 800_000
    assert held == (place == "memory")
    assert done.record["within_budget"]
    for name in ("weights.safetensors", "items.parquet"):
        assert (model / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert not (model / ".training").exists() and not list(tmp_path.glob(".*scratch"))


def test_a_state_of_another_training_is_not_taken_up(
    quick: Run, dataset: Callable[[str], Path], tmp_path: Path
) -> None:
    interactions, model = dataset("lastfm") / "plays.csv", tmp_path / "model"
    command = ("train", interactions, "-o", model, "--model", "ials", "--factors", 8, "--set", "iterations=1")
    with refused(BadInput, model, "resume"):
        in_process.done(*command, "--resume")
    state = FactorState(np.zeros((3, 8), np.float32), np.zeros((2, 8), np.float32))
    path = model / ".training" / checkpoint.FILE
    FactorCheckpoint(path, {"data": "another", "factors": 8}).save(state)
    with refused(UsageError, "training", "data"):
        in_process.done(*command, "--resume")
    path.write_bytes(b"\x00" * 100)
    done = quick("apps.recsys", *command)
    assert done.code == 0
    says(done.err, "checkpoint", "damaged")


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    state = FactorState(random.random((30, 4), np.float32), random.random((20, 4), np.float32), sweep=5, row=7)
    kept = FactorCheckpoint(tmp_path / "state", {"alpha": 2.0, "seed": 1})
    assert kept.due()
    kept.save(state)
    assert kept.read_settings() == {"alpha": 2.0, "seed": 1}
    again = kept.load()
    assert again is not None and (again.sweep, again.row) == (5, 7)
    np.testing.assert_array_equal(again.users, state.users)
    np.testing.assert_array_equal(again.items, state.items)
    kept.path.write_bytes(kept.path.read_bytes()[:-3])
    assert kept.load() is None
