"""Surroundings of a running command: its plan, the meter, the walls, progress, and requests to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from common.cli import interrupts, progress, streams
from common.memory.plan.plan import Plan
from common.memory.plan.planner import Workload
from common.memory.process import guard, meter
from common.memory.process.budget import MemoryBudget
from common.memory.process.cuda import Device
from common.training.distributed.group import ALONE, Group

Request = TypeVar("Request")
Work = TypeVar("Work", bound=Workload)


@dataclass(slots=True)
class Session:
    """Surroundings of a running command."""

    budget: MemoryBudget
    plan: Plan
    meter: meter.PeakMeter
    threads: int
    seed: int
    device: Device | None = None
    """The CUDA device to compute on; ``None``: the host."""
    quiet: bool = False
    group: Group = ALONE
    """The ranks that do this together."""
    results: dict[str, Any] = field(default_factory=dict)
    """The record's ``results``; what is in here is kept when the command then raises."""
    _stop: int | None = field(default=None)

    @property
    def stopping(self) -> bool:
        """True if SIGINT or SIGTERM asked us to stop: write a checkpoint, then raise ``KeyboardInterrupt``."""
        return self._stop is not None

    def phase(self, name: str) -> Any:
        """Measure a block of work; the names are those of the footprint's phases."""
        return self.meter.phase(name)

    def wall(self) -> bool:
        """Let this process hold no more than the ceiling, from what it holds now; whether that can be set."""
        return guard.soft_wall(self.budget.host_bytes - guard.SUPERVISOR_BYTES, threads=self.threads)

    @contextmanager
    def reserving(self) -> Iterator[None]:
        """A block behind the hard wall only: its peak was measured, and it reserves far more than it takes."""
        guard.lift_soft_wall()
        try:
            yield
        finally:
            self.wall()

    def say(self, message: str) -> None:
        """One line for the person at the terminal (stderr)."""
        if not self.quiet:
            streams.say(message)

    def progress(self, *, total: float | None, unit: str, label: str) -> Any:
        """Progress on stderr, a bar or lines (``common.cli.progress``): a context manager with ``update``."""
        return progress.bar(total=total, unit=unit, label=label, quiet=self.quiet)

    @contextmanager
    def deferred_signals(self) -> Iterator[None]:
        """Within the block the first SIGINT, SIGTERM or SIGHUP only sets ``stopping``; a second one interrupts at once.

        A copy of the first (``interrupts.is_copy``) changes nothing.
        """

        def remember(number: int, _frame: object) -> None:
            if interrupts.is_copy(number):
                return
            if self._stop is not None:
                raise KeyboardInterrupt
            self._stop = number

        hung_up = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []  # unless by ``nohup``
        numbers = (signal.SIGINT, signal.SIGTERM, *hung_up)
        old = {number: signal.signal(number, remember) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


@dataclass(slots=True, kw_only=True)
class CommandSession(Session, Generic[Request, Work]):
    """A session with what the command was asked, and the work that it planned."""

    request: Request
    """Request that ``Command.request`` made of the command line."""
    workload: Work
    """Workload that ``Command.workload`` returned, with what it read of the input."""
