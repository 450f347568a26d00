"""Run ``recsys`` commands in the test's own process: what they compute and write, without walls, plan or record."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from apps.recsys import cli
from common.memory.process.budget import MemoryBudget
from common.training.distributed.group import ALONE


class Bar:
    """A progress bar that shows nothing."""

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: float = 1) -> None:
        """Do nothing."""


class InProcess:
    """The parts of ``common.cli.session.CommandSession`` that commands use, with the first setting of their work."""

    stopping, quiet, threads, group = False, True, 1, ALONE

    def __init__(self, request: Any, workload: Any) -> None:
        self.request, self.workload, self.plan = request, workload, next(iter(workload.settings()))
        self.budget = MemoryBudget.parse("8GiB")
        self.said: list[str] = []
        """Lines for the user."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Measure nothing."""
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


def done(*words: object) -> tuple[Mapping[str, Any], list[str]]:
    """Run a command; returns its results and its lines. Raises what the command raises."""
    args = cli.parser().parse_args([*map(str, words), "--threads", "1"])
    command = args.command
    request = command.request(args)
    session: Any = InProcess(request, command.workload(request, MemoryBudget.parse("8GiB")))
    return command.execute(session), session.said
