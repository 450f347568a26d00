"""``recsys train`` over the ranks of PyTorch's launcher, on real data."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.models import weights
from apps.recsys.models.linear.spectral import response
from tests.machine import wait_until
from tests.messages import continued, says
from tests.promise import predicted_closely
from tests.ranks import children, ended, launch

Run = Callable[..., Any]
FEW = ("--factors", 16, "--threads", 1, "--memory", "1GiB")
EMBEDDING = ("--model", "embedding", "--epochs", 2, "--set", "negatives=64", *FEW)


def knobs(folder: Path) -> Path:
    """A plan file that shares out the rows of the tables, which all fit."""
    chosen = {"accumulate": 1, "amp": "off", "micro_batch": 256, "table_rows": "shared", "user_block": 256}
    path = folder / "plan.json"
    path.write_text(json.dumps({"workload": "recsys train", "knobs": chosen}))
    return path


def apart(one: Path, other: Path, name: str = weights.ITEMS) -> float:
    """Largest difference of two models' vectors, relative to the largest number."""
    first, second = (weights.read(path / weights.WEIGHTS, name) for path in (one, other))
    return float(np.abs(first - second).max() / np.abs(second).max())


def test_one_process_continues_shared_tables(dataset: Callable[[str], Path], quick: Run, tmp_path: Path) -> None:
    """One of two ranks is killed; what four ranks read of a checkpoint, ``test_row_files`` says."""
    plays, alone, one = dataset("lastfm") / "plays.csv", tmp_path / "alone", tmp_path / "one"
    assert quick("apps.recsys", "train", plays, "-o", alone, *EMBEDDING).code == 0
    launched = launch(2, "apps.recsys", ["train", plays, "-o", one, *EMBEDDING, "--plan", knobs(tmp_path)])
    wait_until((one / ".training" / "last.safetensors").is_file, seconds=120, alive=launched)
    os.kill(dict(children(one))["1"], signal.SIGKILL)
    code, said = ended(launched)
    assert code != 0
    assert said.count("\n") == 0, said
    says(said, "rank 1", "killed", "checkpoint")
    done = quick("apps.recsys", "train", plays, "-o", one, *EMBEDDING)
    assert done.code == 0
    continued(done.err)
    assert apart(one, alone) <= 1e-3


def test_factors_of_two_ranks_are_those_of_one_process(
    dataset: Callable[[str], Path], quick: Run, tmp_path: Path
) -> None:
    ials = ("--model", "ials", "--set", "frequency_scaling=1", *FEW)
    plays, alone, two = dataset("lastfm") / "plays.csv", tmp_path / "alone", tmp_path / "two"
    assert quick("apps.recsys", "train", plays, "-o", alone, *ials).code == 0
    code, said = ended(launch(2, "apps.recsys", ["train", plays, "-o", two, *ials]))
    assert code == 0, said
    predicted_closely(json.loads((two / "run.json").read_text()))
    assert apart(two, alone) <= 1e-5


@pytest.mark.parametrize(
    "given",
    [("form=spectral", "degree_power=0.3", "--factors", 32), ("form=ease",)],
    ids=["spectral", "ease"],
)
def test_linear_models_of_two_ranks_are_those_of_one_process(
    given: tuple[object, ...], dataset: Callable[[str], Path], quick: Run, tmp_path: Path
) -> None:
    """Weights to 1e-5 of the largest. The saturation and the ridge are chosen on the same hidden items."""
    pairs = [word for one in given if "=" in str(one) for word in ("--set", one)]
    linear = ("--model", "linear", *pairs, *given[2:], "--min-item", 10, "--threads", 1, "--memory", "1GiB")
    plays, alone, two = dataset("lastfm") / "plays.csv", tmp_path / "alone", tmp_path / "two"
    assert quick("apps.recsys", "train", plays, "-o", alone, *linear).code == 0
    code, said = ended(launch(2, "apps.recsys", ["train", plays, "-o", two, *linear]))
    assert code == 0, said
    one, other = (json.loads((path / "run.json").read_text())["results"] for path in (alone, two))
    predicted_closely(json.loads((two / "run.json").read_text()))
    assert one["model"]["hyper"] == other["model"]["hyper"] and len(one["tried"]) == len(other["tried"]) > 1
    expected, found = (multiplied(path, one["model"]["hyper"]) for path in (alone, two))
    assert float(np.abs(found - expected).max() / np.abs(expected).max()) <= 1e-5


def multiplied(model: Path, hyper: dict[str, Any]) -> Any:
    """The matrix by which a linear model multiplies a history, but for powers of the items' numbers of users."""
    if hyper["form"] == "ease":
        return np.load(model / "ease.npy")
    path = model / weights.WEIGHTS
    vectors = weights.tensor(path, weights.SPECTRUM)
    return (vectors * response(weights.read_eigenvalues(path), hyper["saturation"])) @ vectors.T
