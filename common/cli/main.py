"""Shared parts of both command lines: options, the walk from plan to record, progress, error lines and exit codes.

A command that allocates runs in two processes. The small parent parses the ceiling and supervises; the child plans,
sets its soft wall, runs and writes the record. ``--help`` and usage errors never start the child.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NoReturn

from common import __version__
from common.cli import failures, interrupts, job_scripts, ranks, record_file, streams
from common.cli.session import CommandSession, Request, Work
from common.errors import (
    EXIT_BAD_INPUT,
    EXIT_DOES_NOT_FIT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNFORESEEN,
    EXIT_USAGE,
    BadInput,
    DoesNotFit,
    UsageError,
)
from common.files import sole_writer, write_json
from common.memory.costs.probes import resolve
from common.memory.costs.store import CostStore
from common.memory.footprint import ALL
from common.memory.plan import explain, planner
from common.memory.plan.amend import GROWN, amended
from common.memory.plan.divisible import plan_other
from common.memory.plan.plan import Plan
from common.memory.plan.plan_file import read_work
from common.memory.process import child, cuda, glibc, guard, libraries, meter, no_compiler, supervisor
from common.memory.process.budget import BudgetError, MemoryBudget
from common.memory.report.record import ABOVE, RunRecord, memory_line
from common.training.distributed.group import LostRank
from common.training.distributed.world import World

log = logging.getLogger("peakline")

EPILOG = (
    "Every command that computes stays below the ceiling given with --memory, or refuses at the start and names one"
    " that is enough. Exit codes: 0 done, 1 unforeseen, 2 usage, 3 does not fit, 4 bad input, 130 interrupted."
)
"""Last lines of ``--help`` of both applications."""

_CEILING = "PEAKLINE_CEILING"
"""The supervisor's ceiling in bytes and its source, so that ``auto`` is read once for both processes."""


@dataclass(frozen=True, slots=True)
class Command(Generic[Request, Work]):
    """A command that allocates: what it was asked, the work that this is, and how it is done."""

    name: str
    """``"imaging train"``"""
    request: Callable[[argparse.Namespace], Request]
    """Make one immutable value of the options, before anything is read. Raises ``UsageError``."""
    workload: Callable[[Request, MemoryBudget], Work]
    """Read the input's headers, inside the ceiling, and describe the work. Raises ``BadInput``."""
    warm_up: Callable[[Request], str]
    """Names the function that loads what the command needs (``common.memory.costs.baseline``)."""
    execute: Callable[[CommandSession[Request, Work]], Mapping[str, Any]]
    """Do the work; returns the record's ``results``."""
    record: Callable[[Request], Path | None] = lambda request: None
    """Path of the record; ``None``: it is printed by ``--json`` only."""
    sections: Callable[[Mapping[str, Any], Path], Iterable[str]] = lambda written, directory: ()
    """Its own part of the report, from the record and the directory in which that is."""
    huge_pages: bool = False
    """True if its tensors are large (``glibc.tunables``)."""
    merge: bool = False
    """True if it trains in the heap (``common.memory.process.bounded_heap``)."""
    alone: bool = False
    """True: no other command may write to the record's folder meanwhile."""


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options that every allocating command has."""
    group = parser.add_argument_group("memory and running")
    memory = "ceiling for the whole process tree: bytes, 800MiB, 2G, 50%%, auto (the default)"
    group.add_argument("--memory", default="auto", metavar="SIZE", help=memory)
    group.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    group.add_argument("--plan", type=Path, metavar="FILE", help="use the knobs of a plan (--dry-run --json, edited)")
    threads = "CPU threads (default %(default)s)"
    group.add_argument("--threads", type=positive, default=_default_threads(), metavar="N", help=threads)
    group.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default 0)")
    group.add_argument("--json", action="store_true", help="the record on stdout at every ending, nothing else there")
    group.add_argument("--report", action="store_true", help="also write report.html next to the record")
    group.add_argument("-q", "--quiet", action="store_true", help="errors only")
    group.add_argument("-v", "--verbose", action="store_true", help="say more; tracebacks on stderr")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """For the commands that can compute on a CUDA device."""
    group = parser.add_argument_group("CUDA device")
    group.add_argument("--device", default="cpu", metavar="cpu|cuda|cuda:N|auto", help="where to compute (default cpu)")
    gpu_memory = "ceiling on the device, without CUDA's context: a size, N%% of what is free, auto (the default: 90%%)"
    group.add_argument("--gpu-memory", metavar="SIZE", help=gpu_memory)


def add_settings_option(parser: argparse.ArgumentParser, settings: Mapping[str, Any]) -> None:
    """``--set KEY=VALUE`` for the hyper-parameters in ``settings`` (name -> default)."""
    defaults = ", ".join(f"{name}={value}" for name, value in settings.items())
    text = f"hyper-parameter; names and defaults: {defaults}"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def parse_settings(pairs: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with the ``--set`` pairs applied; each value takes the default's type.

    Raises
    ------
    UsageError
        Unknown key, or a value that is not of the default's type.
    """
    chosen = dict(settings)
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or key not in settings:
            raise UsageError(f"--set {pair}: expected KEY=VALUE with KEY one of {', '.join(settings)}")
        kind = type(settings[key])
        try:
            chosen[key] = kind(text)
        except ValueError:
            raise UsageError(f"--set {pair}: {text!r} is not {kind.__name__}") from None
    return chosen


def positive(text: str) -> int:
    """An argparse type: an integer of at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def triple(text: str) -> tuple[int, int, int]:
    """An argparse type: three sizes, ``96`` or ``96,96,64``."""
    sizes = [positive(part) for part in text.split(",")]
    if len(sizes) not in (1, 3):
        raise argparse.ArgumentTypeError(f"{text} is not X,Y,Z")
    x, y, z = sizes * 3 if len(sizes) == 1 else sizes
    return x, y, z


def _default_threads() -> int:
    """The processor's cores, shared with the other ranks on this node."""
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, len(os.sched_getaffinity(0)) // (int(local) if local.isdecimal() and int(local) else 1))


def main(parser: argparse.ArgumentParser, module: str, argv: Sequence[str] | None = None) -> int:
    """Parse and run. Subparsers set ``command`` (a ``Command``) or ``run`` (a function of the namespace), which wins.

    Returns
    -------
    int
        The exit code; ``common.errors`` lists them.
    """
    streams.repair()
    code = _main(parser, module, list(sys.argv[1:] if argv is None else argv))
    if (error := streams.flush()) is not None:
        streams.say(f"{parser.prog}: the output could not be written: {error.strerror}")
        return code or EXIT_UNFORESEEN
    return code


def _main(parser: argparse.ArgumentParser, module: str, arguments: list[str]) -> int:
    args = parser.parse_args(arguments)
    try:
        args.world = ranks.place(args)
        _configure_logging(args)
        if getattr(args, "run", None) is not None:
            return _simple(args)
        supervisor = child.supervisor_pid()
        budget = _budget(args, supervised=supervisor is not None)
        request = args.command.request(args)
    except (UsageError, BudgetError) as error:
        return _fail(args, "usage", str(error), EXIT_USAGE)
    path = _record_path(args, request)
    if args.report and path is None:
        return _fail(args, "usage", "--report: this command keeps no record; --json prints it", EXIT_USAGE)
    if supervisor is None:
        _supervise(args, budget, path, child.python_command(module, arguments))
    return ranks.leave(_run(args, request, budget, supervisor), args.world)


def _configure_logging(args: argparse.Namespace) -> None:
    level = logging.ERROR if getattr(args, "quiet", False) else logging.WARNING
    logging.basicConfig(level=logging.DEBUG if getattr(args, "verbose", False) else level, format="%(message)s")
    for chatty in ("matplotlib", "h5py", "numba", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _budget(args: argparse.Namespace, *, supervised: bool) -> MemoryBudget:
    if supervised and (inherited := os.environ.get(_CEILING)):
        size, _, source = inherited.partition(" ")
        return MemoryBudget(int(size), None, source)
    budget = ranks.ceiling(MemoryBudget.parse(args.memory), args.world)
    if budget.warning:
        log.warning(budget.warning)
    return budget


def _record_path(args: argparse.Namespace, request: Any) -> Path | None:
    command: Command[Any, Any] = args.command
    return command.record(request) if args.world.leads else None  # the first rank alone keeps it


def _supervise(args: argparse.Namespace, budget: MemoryBudget, record: Path | None, command: list[str]) -> NoReturn:
    os.environ[_CEILING] = f"{budget.host_bytes} {budget.source}"
    tunables = glibc.tunables(huge_pages=args.command.huge_pages, merge=args.command.merge)
    variables = glibc.environment(args.threads) | tunables
    if getattr(args, "device", cuda.HOST) != cuda.HOST:
        variables |= cuda.environment()
    path = None if args.dry_run else record
    name = _name(args) if args.world.leads else f"{_name(args)}, rank {args.world.rank}"
    child.supervise(command, name=name, ceiling=budget.host_bytes, variables=variables, json=args.json, record=path)


def _simple(args: argparse.Namespace) -> int:
    """A command that allocates nothing large and keeps no record of memory."""
    try:
        return int(args.run(args) or EXIT_OK)
    except UsageError as error:
        return _fail(args, "usage", str(error), EXIT_USAGE)
    except BadInput as error:
        return _fail(args, "input", str(error), EXIT_BAD_INPUT)
    except BrokenPipeError:  # the reader of the output has gone
        return streams.silence(sys.stdout)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _fail(args: argparse.Namespace, kind: str, message: str, code: int) -> int:
    """An ending before there is a meter: one line, and a minimal record with ``--json``."""
    ranks.say_last(f"{_name(args)}: {message}", getattr(args, "world", World()))
    if getattr(args, "json", False):
        about = {"peakline": __version__, "command": _name(args), "exit_code": code}
        streams.write_json(about | {"error": {"kind": kind, "message": message}})
    return code


def _name(args: argparse.Namespace) -> str:
    command: Command[Any, Any] | None = getattr(args, "command", None)
    return command.name if command else str(getattr(args, "name", "peakline"))


def _run(args: argparse.Namespace, request: Any, budget: MemoryBudget, supervisor: int) -> int:
    """Plan and run in the child process, and end with one of the exit codes of ``common.errors``."""
    glibc.pin_thresholds()
    no_compiler.leave_out()
    # SIGTERM unwinds like SIGINT, so that nothing half-written stays behind.
    interrupts.handle()
    command: Command[Any, Any] = args.command
    record = RunRecord(__version__, command.name, budget)
    line: str | None = None
    with meter.PeakMeter(companions=(supervisor,)) as gauge:
        try:
            _plan_and_execute(args, request, record, gauge)
        except KeyboardInterrupt:
            again = "" if command.record(request) is None else "; give the same command again to continue"
            record.exit_code, line = EXIT_INTERRUPTED, "interrupted" + again if args.world.leads else None
        except DoesNotFit as refusal:
            record.exit_code, line = EXIT_DOES_NOT_FIT, explain.refusal_text(refusal)
            record.smallest_feasible_bytes = refusal.smallest_feasible_bytes
            record.plan = refusal.smallest
            record.error = {"kind": "does not fit", "message": line}
        except (UsageError, BudgetError) as error:
            record.exit_code, line = EXIT_USAGE, str(error)
            record.error = {"kind": "usage", "message": line}
        except LostRank as error:
            record.exit_code, (line, record.error) = EXIT_UNFORESEEN, ranks.lost(error, args.world)
        except BrokenPipeError:  # the reader of the output has gone
            streams.silence(sys.stdout)
        except BadInput as error:
            record.exit_code, line = EXIT_BAD_INPUT, str(error)
            record.error = {"kind": "input", "message": error.public}
        except Exception as error:
            record.exit_code, line, record.error = failures.describe(error, args)
    if record.exit_code == EXIT_OK and gauge.peak_bytes > budget.host_bytes:
        line = explain.excess_text(record.plan, gauge.peaks, budget.host_bytes)
        record.exit_code, record.error = EXIT_UNFORESEEN, {"kind": ABOVE, "message": line}
        line += "" if args.dry_run else "; what it wrote is whole, and kept"
    _finish(args, _record_path(args, request), record, gauge, line)
    return record.exit_code


def _plan_and_execute(args: argparse.Namespace, request: Any, record: RunRecord, gauge: meter.PeakMeter) -> None:
    command: Command[Any, Any] = args.command
    costs = job_scripts.fresh_costs() if getattr(args, "format", None) else CostStore()
    with gauge.phase("plan"):
        if hasattr(args, "device"):
            record.device, size = cuda.open_device(args.device, args.gpu_memory)
            record.budget = replace(record.budget, device_bytes=size)
        workload = command.workload(request, record.budget)
        if args.world.leads:
            record.plan, workload = _choose(args, workload, record.budget, costs)
        if costs.exceeded:  # a run has never been above its ceiling, not even to measure
            raise DoesNotFit(ceiling=record.budget.host_bytes, smallest=record.plan)
    if costs.measured and record.plan is not None:
        gauge.rename_last("probe")
        record.plan = record.plan.including("probe", gauge.phases[-1].peak_bytes)
    if args.dry_run:
        if record.plan is not None and not args.json:
            sys.stdout.write(job_scripts.dry_run_text(args, record.plan, record.budget.host_bytes) + "\n")
        return
    with gauge.phase("start"):
        guard.lift_soft_wall()
        ranks.wait_without_wall(args.world)
        warm_up = command.warm_up(request)
        resolve(warm_up)()
        group = ranks.begin(args.world, workload, record, lambda budget: _choose(args, workload, budget, costs)[0])
        glibc.trim()
    assert record.plan is not None
    if args.verbose and args.world.leads:
        sys.stderr.write(explain.plan_text(record.plan, record.budget.host_bytes) + "\n")
    session = CommandSession(
        budget=record.budget,
        plan=record.plan,
        meter=gauge,
        threads=args.threads,
        seed=args.seed,
        device=record.device,
        quiet=args.quiet,
        group=group,
        request=request,
        workload=workload,
    )
    gauge.floor_bytes = meter.resident()
    resident = gauge.tree_bytes()
    record.plan = session.plan = amended(session.plan, costs, warm_up, record.budget.host_bytes)
    if not guard.lower_hard_wall(record.budget.host_bytes, resident):
        least = max(resident, record.budget.host_bytes)
        smallest = record.plan.including(ALL, least, name=GROWN)
        raise DoesNotFit(ceiling=record.budget.host_bytes, smallest=smallest)
    child.tell_supervisor(supervisor.PLANNED)
    record.missing_walls = guard.missing_walls(soft=session.wall())
    record.results = session.results
    path = command.record(request) if command.alone and args.world.leads else None
    with sole_writer(path.parent) if path is not None else nullcontext(), libraries.none_late():
        session.results.update(command.execute(session))
    ranks.end(group, gauge, session.results)
    record.plan = session.plan  # another one where settings were searched


def _choose(
    args: argparse.Namespace, workload: planner.Workload, budget: MemoryBudget, costs: CostStore
) -> tuple[Plan, planner.Workload]:
    """The plan, and the work that it is for: perhaps in a smaller size, or without the parts that do not fit."""
    workload = planner.best_choice(workload, budget, costs)
    if args.plan is None:
        try:
            return planner.plan(workload, budget, costs, ahead=not args.dry_run), workload
        except DoesNotFit:
            if (other := plan_other(workload, budget, costs)) is not None:
                return other
            raise
    try:
        planner.measure_ahead(workload, budget, costs)
        return read_work(args.plan.read_text(encoding="utf-8"), workload, budget, costs)
    except OSError as error:
        raise UsageError(f"--plan {args.plan}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--plan {args.plan}: {error}") from None


def _finish(
    args: argparse.Namespace, path: Path | None, record: RunRecord, gauge: meter.PeakMeter, line: str | None
) -> None:
    command: Command[Any, Any] = args.command
    written = record.to_json(gauge)
    if path is not None and path.parent.is_dir() and not args.dry_run and not record_file.keeps(path, record):
        try:
            write_json(path, written)
            if args.report:
                record_file.write_report(path, written, command.sections(written, path.parent))
        except OSError as error:
            streams.say(f"{command.name}: its record {path} could not be written: {error.strerror}")
    if line is not None:
        ranks.say_last(f"{command.name}: {line}", args.world)
    # A command with results says what it took, even if a part of its input was bad.
    worked = record.exit_code == EXIT_OK or (record.exit_code == EXIT_BAD_INPUT and record.results)
    if worked and record.plan is not None and not args.dry_run and not args.quiet:
        streams.say(memory_line(record, gauge.peak_bytes))
    if args.json:
        streams.write_json(written)


def options(args: argparse.Namespace) -> argparse.Namespace:
    """A ``Command.request`` for a command whose options are its whole request."""
    return args
