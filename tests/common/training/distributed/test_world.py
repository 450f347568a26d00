"""What the launcher says of ranks, and launches that cannot be understood."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UsageError
from common.training.distributed.world import LAUNCHER_BYTES, World
from tests.conftest import ROOT
from tests.messages import refused, says

LAUNCHED = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "PYTHONSAFEPATH": "1",
    "PYTHONPATH": str(ROOT),
}


def test_shares_are_the_batch_and_differ_by_one_at_most() -> None:
    for size in (1, 2, 3, 7):
        for batch in (7, 8, 64):
            shares = [World(rank, size).share(batch) for rank in range(size)]
            assert [sample for share in shares for sample in share] == list(range(batch))
            assert max(map(len, shares)) == World(0, size).largest_share(batch) <= min(map(len, shares)) + 1


def test_what_a_node_has_is_for_its_ranks_and_the_launcher() -> None:
    world = World(0, 8, 4)
    assert world.node_bytes(world.rank_share(1 << 33)) == 1 << 33
    assert World().rank_share(1 << 33) == 1 << 33 > LAUNCHER_BYTES


def test_a_launch_is_read() -> None:
    assert World.of_environment(LAUNCHED) == World(1, 2, 2)
    assert World.of_environment({**LAUNCHED, "WORLD_SIZE": "1", "RANK": "0"}) == World()


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"MASTER_ADDR": ""}, ("MASTER_ADDR", "torchrun")),
        ({"MASTER_PORT": ""}, ("MASTER_PORT", "torchrun")),
        ({"RANK": ""}, ("RANK", "nothing")),
        ({"RANK": "2"}, ("RANK=2", "WORLD_SIZE=2")),
        ({"WORLD_SIZE": "two"}, ("WORLD_SIZE", "two")),
        ({"LOCAL_WORLD_SIZE": "4"}, ("LOCAL_WORLD_SIZE=4",)),
    ],
)
def test_a_launch_that_is_not_understood(changes: dict[str, str], facts: tuple[str, ...]) -> None:
    with refused(UsageError, *facts):
        World.of_environment({**LAUNCHED, **changes})


def test_without_the_safe_path_nothing_is_imported_from_a_strange_folder(tmp_path: Path) -> None:
    environment = {name: value for name, value in (os.environ | LAUNCHED).items() if name != "PYTHONSAFEPATH"}
    environment |= {"RANK": "0"}
    command = [sys.executable, "-m", "apps.imaging", "train", ".", "-o", "model"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    says(done.stderr, "PYTHONSAFEPATH=1")


@pytest.mark.parametrize(
    ("command", "environment", "facts"),
    [
        (("apps.imaging", "train", ".", "-o", "m"), {"RANK": "0"}, ("2 ranks", "batch of 1")),
        (("apps.imaging", "train", ".", "-o", "m"), {"RANK": "0", "MASTER_ADDR": ""}, ("MASTER_ADDR",)),
        (("apps.imaging", "train", ".", "-o", "m", "--all-folds"), {"RANK": "0"}, ("--all-folds", "torchrun")),
        (("apps.imaging", "infer", ".", "-m", "m", "-o", "o"), {"RANK": "0"}, ("torchrun", "--part")),
        (("apps.recsys", "train", "x", "-o", "m"), {"RANK": "0"}, ("linear", "form=spectral")),
        (("apps.recsys", "train", "x", "-o", "m", "--model", "embedding", "--tune", "2"), {"RANK": "0"}, ("--tune",)),
        (("apps.imaging", "train", ".", "-o", "m", "--world-size", "4"), {"WORLD_SIZE": "1"}, ("--dry-run",)),
    ],
    ids=["batch", "address", "folds", "infer", "linear", "tune", "dry"],
)
def test_usage_errors(
    run: Callable[..., Any], command: tuple[str, ...], environment: dict[str, str], facts: tuple[str, ...]
) -> None:
    more = ("--set", "batch=1") if facts[0] == "2 ranks" else ()
    done = run(*command, *more, env=LAUNCHED | environment)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    says(done.err, *facts)
