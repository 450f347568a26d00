"""Several processes that answer: copies of the one that loaded the model, whose pages they share."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from apps.recsys.serving.lines import Lines
from common.cli import interrupts
from common.memory.process import child

RESTARTS, RESTART_SECONDS = 5, 60.0
"""Workers that may end by themselves within some seconds before the server gives up."""


class WorkersFailed(RuntimeError):
    """Workers ended by themselves, again and again."""


def run(count: int, work: Callable[[int, bool], None], lines: Lines) -> None:
    """Start workers, pass signals on to them, replace those that end by themselves, and return when all have ended.

    Parameters
    ----------
    count
        Number of workers.
    work
        Called in each with its number, and True if it replaces another; it returns after SIGTERM.
    lines
        What is written.

    Raises
    ------
    WorkersFailed
        Workers ended by themselves too often.
    """
    gc.collect()
    gc.freeze()  # a collection in a worker would write to the pages of all objects
    workers: dict[int, int] = {}
    stopping = False

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if interrupts.is_copy(number):
            return
        stopping = stopping or number != signal.SIGHUP
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP if number == signal.SIGHUP else signal.SIGTERM)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    old = {number: signal.signal(number, pass_on) for number in numbers}
    ended: list[float] = []
    try:
        for place in range(count):
            workers[_start(place, work, replaces=False)] = place
        while workers:
            pid, status = os.waitpid(-1, 0)
            place = workers.pop(pid, -1)
            if stopping or place < 0:
                continue
            ended = [when for when in ended if time.monotonic() - when < RESTART_SECONDS] + [time.monotonic()]
            if len(ended) > RESTARTS:
                stopping = True
                for other in workers:
                    os.kill(other, signal.SIGTERM)
                continue
            lines.event(
                "worker", f"recsys serve: a worker ended with {os.waitstatus_to_exitcode(status)}; another begins"
            )
            workers[_start(place, work, replaces=True)] = place
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        gc.unfreeze()
    if len(ended) > RESTARTS:
        raise WorkersFailed(f"{RESTARTS} workers ended by themselves within {RESTART_SECONDS:.0f} seconds")


def _start(place: int, work: Callable[[int, bool], None], *, replaces: bool) -> int:
    """Fork a worker; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        child.die_with_parent()
        work(place, replaces)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)  # without what the parent does at its end
