"""Patience of a test on this machine, and the processor time of a command on it."""

import os
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WORK = 1_000_000
USUAL_SECONDS = 0.05
"""Processor seconds of ``_work`` on the machine for which time-outs are written."""
LEAST = 2.0
"""Time-outs are for what hangs: also on the usual machine, a command may take twice what is written."""


def _work() -> float:
    """Processor seconds of a fixed loop, the least of three: how fast one core is, whatever else runs."""
    seconds = []
    for _ in range(3):
        began = time.process_time()
        sum(number & 7 for number in range(WORK))
        seconds.append(time.process_time() - began)
    return min(seconds)


SLOWNESS = max(1.0, _work() / USUAL_SECONDS)
"""Slowness of this machine's cores against the usual ones, measured when a test run starts."""


def patience(seconds: float) -> float:
    """A time-out that only what hangs exceeds: ``seconds`` on the usual machine, more where cores are slow or shared.

    A busy machine is known by its load a core, of the last minute and of this moment.
    """
    recent, *_, running = Path("/proc/loadavg").read_text().split()[:4]
    share = max(float(recent), float(running.partition("/")[0])) / len(os.sched_getaffinity(0))
    return seconds * SLOWNESS * (LEAST + share)


def wait_until(what: Callable[[], bool], *, seconds: float = 60, alive: "subprocess.Popen[Any] | None" = None) -> None:
    """Poll until it is so; fails after ``patience(seconds)``, or when a process that should be ``alive`` has ended."""
    deadline = time.monotonic() + patience(seconds)
    while not what():
        assert alive is None or alive.poll() is None, "the process ended before"
        assert time.monotonic() < deadline, f"not within {patience(seconds):.0f} s"
        time.sleep(0.005)


def processor_seconds(command: Sequence[str], runs: int = 3) -> float:
    """Processor seconds of a command with its children, the least of some runs: others cannot take these."""
    seconds = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)
