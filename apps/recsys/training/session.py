"""Surroundings that a training needs, so that trials of a search can train too."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from common.memory.plan.plan import Plan
from common.memory.process.budget import MemoryBudget
from common.training.distributed.group import Group


class TrainingSession(Protocol):
    """Plan, ceiling, progress and interrupts of a training; ``common.cli.session.Session`` is one."""

    @property
    def plan(self) -> Plan:
        """The chosen knobs."""
        ...

    @property
    def budget(self) -> MemoryBudget:
        """The ceiling."""
        ...

    @property
    def threads(self) -> int:
        """Threads to compute with."""
        ...

    @property
    def group(self) -> Group:
        """The ranks that train together."""
        ...

    @property
    def stopping(self) -> bool:
        """True once a signal asked the command to stop: write a checkpoint, then raise ``KeyboardInterrupt``."""
        ...

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """Measure a block of work as a phase of the footprint."""
        ...

    def say(self, message: str) -> None:
        """Print one line for the user."""
        ...

    def progress(self, *, total: float | None, unit: str, label: str) -> Any:
        """A progress bar: a context manager with ``update``."""
        ...
