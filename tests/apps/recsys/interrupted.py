"""Trainings that a test interrupts or kills."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.machine import wait_until


def started(interactions: Path, model: Path, ceiling: str, options: Sequence[str]) -> subprocess.Popen[bytes]:
    """The training in a process group of its own, so that a kill reaches all of it."""
    command = [sys.executable, "-m", "apps.recsys", "train", interactions, "-o", model, *options, "--memory", ceiling]
    return subprocess.Popen([*map(str, command), "-q"], start_new_session=True)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Until it is so; fails when the process ends first."""
    wait_until(what, seconds=120, alive=process)


def sweeps(path: Path) -> int:
    """Sweeps in a checkpoint, 0 where there is none."""
    if not path.is_file():
        return 0
    with path.open("rb") as stream:
        return int(json.loads(stream.readline())["sweep"])
