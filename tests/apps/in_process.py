"""The session of a command in the test's own process: what it computes and writes, without walls, plan or record."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from common.errors import BadInput, UsageError
from common.memory.footprint import Footprint
from common.memory.plan.plan import Plan, Setting
from common.memory.process.budget import MemoryBudget
from common.training.distributed.group import ALONE

CEILING = "8GiB"


class Bar:
    """A progress bar that shows nothing."""

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: float = 1) -> None:
        """Do nothing."""

    def set_postfix(self, **_: object) -> None:
        """Do nothing."""


class InProcess:
    """The parts of ``common.cli.session.CommandSession`` that commands use, with a setting of their work."""

    stopping, quiet, threads, group, device = False, True, 1, ALONE, None

    def __init__(self, request: Any, workload: Any, setting: Setting) -> None:
        self.request, self.workload = request, workload
        self.plan = Plan("in process", tuple(sorted(setting.items())), Footprint.of([]))
        self.budget = MemoryBudget.parse(CEILING)
        self.results: dict[str, Any] = {}
        self.said: list[str] = []
        """Lines for the user."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Measure nothing."""
        return nullcontext()

    def reserving(self) -> AbstractContextManager[None]:
        """There is no wall."""
        return nullcontext()

    @contextmanager
    def deferred_signals(self) -> Iterator[None]:
        """Leave signals as they are."""
        yield

    def say(self, message: str) -> None:
        """Keep a line."""
        self.said.append(message)

    def progress(self, **_: object) -> Bar:
        """A bar that shows nothing."""
        return Bar()


def done(parser: Any, choose: Any, *words: object) -> tuple[Mapping[str, Any], list[str]]:
    """Run a command; returns its results and its lines. Raises what the command raises.

    Parameters
    ----------
    parser
        The application's.
    choose
        Called with the workload; returns the setting to run.
    """
    try:
        return _done(parser, choose, *words)
    except (BadInput, UsageError) as refusal:
        traceback.clear_frames(refusal.__traceback__)  # scratch folders go with what they held, as with a process
        raise


def _done(parser: Any, choose: Any, *words: object) -> tuple[Mapping[str, Any], list[str]]:
    args = parser.parse_args([*map(str, words), "--threads", "1"])
    command = args.command
    request = command.request(args)
    workload = command.workload(request, MemoryBudget.parse(CEILING))
    session: Any = InProcess(request, workload, choose(workload))
    session.results.update(command.execute(session))
    return session.results, session.said
