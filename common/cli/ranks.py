"""A training over the ranks of PyTorch's launcher: who plans, who speaks, and how they begin and end together.

Rank 0 plans, writes and speaks. The others keep no record and are silent, unless they fail and rank 0 does not: an
input that is wrong for all is told once.
"""

import argparse
import atexit
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from common.cli import interrupts, streams
from common.errors import EXIT_DOES_NOT_FIT, EXIT_UNFORESEEN, EXIT_USAGE, DoesNotFit, UsageError
from common.memory.plan.plan import Plan
from common.memory.process import child, guard, supervisor
from common.memory.process.budget import MemoryBudget, format_size, total_memory
from common.memory.process.meter import PeakMeter
from common.memory.report.record import RunRecord
from common.training.distributed import last_words
from common.training.distributed.group import ALONE, Group, LostRank
from common.training.distributed.world import LAUNCHER_BYTES, World, launched

if TYPE_CHECKING:
    from common.memory.plan.planner import Workload

log = logging.getLogger("peakline")

LAST_WORD_SECONDS = 5.0
"""For how long a failing rank lets rank 0 speak. What fails on all ranks fails there too, and the launcher, which looks
ten times a second, then ends the others."""


@runtime_checkable
class OverRanks(Protocol):
    """A workload that can be shared by ranks."""

    def alike(self) -> Mapping[str, Any]:
        """Return what decides the result, as values that JSON can represent: it must be the same on all ranks."""
        ...


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let a command run over ranks, and add ``--world-size``."""
    group = parser.add_argument_group("several ranks (torchrun)")
    text = "with --dry-run: print the plan of each of N ranks, which need not be here"
    group.add_argument("--world-size", type=_ranks, metavar="N", help=text)
    parser.set_defaults(world=World())


def _ranks(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of ranks")
    return value


def place(args: argparse.Namespace) -> World:
    """Find out which rank this process is, and silence it if it is not the first.

    Raises
    ------
    UsageError
        A launch that cannot be understood, or of a command that does not run over ranks.
    """
    if not hasattr(args, "world"):
        if launched():
            raise UsageError("only trainings run under torchrun; share other work out with --part K/N")
        return World()
    if args.world_size is not None:
        if not args.dry_run:
            raise UsageError("--world-size is for --dry-run; to train on several ranks, start torchrun")
        return World(0, args.world_size)
    world = World.of_environment()
    if world.size > 1 and getattr(args, "run", None) is not None:
        raise UsageError("--all-folds does not run under torchrun; give one --fold K/N")
    if not world.leads:
        args.quiet, args.json, args.report = True, False, False
    return world


def ceiling(budget: MemoryBudget, world: World) -> MemoryBudget:
    """Return the ceiling of one rank: what ``auto`` finds on a node is for all of its ranks and the launcher.

    One that was given is kept; the first rank warns if those of all ranks are more than the machine has.
    """
    if budget.source == "auto":
        return replace(budget, host_bytes=world.rank_share(budget.host_bytes))
    node, total = world.node_bytes(budget.host_bytes), total_memory()
    if world.local_size > 1 and world.leads and node > total >= budget.host_bytes:
        told = f"{world.local_size} ranks of {format_size(budget.host_bytes)} and the launcher may take"
        log.warning("%s %s; this machine has %s", told, format_size(node), format_size(total))
    return budget


def node_text(plan: Plan, world: World) -> str:
    """Return lines on ranks and nodes for ``--dry-run``; nothing for one rank."""
    if world.size == 1:
        return ""
    each = format_size(plan.needed_bytes)
    node = f"{format_size(LAUNCHER_BYTES)} for the launcher and {each} for each of its ranks"
    if world.local_size > 1:
        node += f": {format_size(world.node_bytes(plan.needed_bytes))}"
    return f"\n  each of {world.size} ranks needs {each}; a node: {node}"


def say_last(line: str, world: World) -> None:
    """Say how the command ended. A rank that is not the first waits whether it is ended as well."""
    if not world.leads:
        try:
            time.sleep(LAST_WORD_SECONDS)
        except KeyboardInterrupt:
            return
        line = f"rank {world.rank}: {line}"
    streams.say(line)


def begin(world: World, workload: "Workload", record: RunRecord, choose: Callable[[MemoryBudget], Plan]) -> Group:
    """Meet the other ranks after the warm-up, and agree on ceiling and plan, which are put into ``record``.

    Parameters
    ----------
    choose
        Makes the leader's plan under another ceiling.

    Raises
    ------
    UsageError
        Ranks that would not compute the same training; on the leader.
    DoesNotFit
        The plan does not fit under the smallest of all ceilings; on the leader.
    SystemExit
        The same, on the others.
    LostRank
        Another rank has ended.
    """
    if world.size == 1:
        return ALONE
    from common.training.distributed.meeting import Arrival, Meeting, check_alike, smallest_ceiling

    meeting = Meeting(world)
    alike = workload.alike() if isinstance(workload, OverRanks) else {}
    arrival = Arrival(record.budget.host_bytes, alike)
    if not world.leads:
        word = meeting.word(arrival)
        if "exit" in word:
            raise SystemExit(int(word["exit"]))
        record.plan = Plan.received(word["plan"])
        record.budget = replace(record.budget, host_bytes=min(record.budget.host_bytes, int(word["ceiling"])))
        return meeting.group()
    assert record.plan is not None
    last_words.listen()
    arrivals = meeting.gather(arrival)
    try:
        check_alike(arrivals)
        least, line = smallest_ceiling(arrivals)
        if line:
            streams.say(f"{record.command}: {line}")
        record.budget = replace(record.budget, host_bytes=least)
        if record.plan.needed_bytes > least:
            record.plan = choose(record.budget)
    except (UsageError, DoesNotFit) as error:
        meeting.publish({"exit": EXIT_DOES_NOT_FIT if isinstance(error, DoesNotFit) else EXIT_USAGE})
        raise
    meeting.publish({"plan": record.plan.to_json(), "ceiling": least})
    return meeting.group()


def wait_without_wall(world: World) -> None:
    """Let a rank that waits for the plan load its libraries: whether they fit is the plan's to say."""
    if not world.leads:
        child.tell_supervisor(supervisor.UNWALLED)
        guard.lift_hard_wall()


def lost(error: LostRank, world: World) -> tuple[str | None, dict[str, str]]:
    """Return the line of a rank that has lost another, and its record's error; signals are ignored from now on."""
    interrupts.ignore()
    return str(error) if world.leads else None, {"kind": "lost rank", "message": str(error)}


def end(group: Group, gauge: PeakMeter, results: dict[str, Any]) -> None:
    """Collect the ranks' peaks into the record's ``results``, and leave the group."""
    if not group.several:
        return
    with suppress(LostRank):  # the work is done
        peaks = group.all_of(gauge.peak_bytes)
        if group.leads:
            results["ranks"] = {"size": group.world.size, "peak_bytes": peaks}
        group.close()


def leave(code: int, world: World) -> int:
    """Return the exit code; a rank of several ends here, as PyTorch may wait for ever while it takes a group down."""
    if world.size == 1:
        return code
    interrupts.ignore()
    atexit._run_exitfuncs()
    os._exit(code or (EXIT_UNFORESEEN if streams.flush() else code))
