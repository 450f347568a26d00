"""Draw command lines and their inputs at random, and judge whether each keeps its promise.

A grid finds only what it lists. Here hypothesis draws a ``Session`` of an application: inputs with ordinary defects,
and the commands that a user would run on them, with options from the application's own parser. A command's refusal
under an impossible ceiling names the smallest one that is enough; the command then runs under that and under 1.3 times
as much, inside a cgroup and beside a watcher of its own. A session in which something fails is reduced to the smallest
that fails. An application's module draws until the clock ends (``--seed 1 --seconds 3600``); the next call continues.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from common.bench.harness import Bound, Case, Suite, measure
from common.errors import EXIT_BAD_INPUT, EXIT_DOES_NOT_FIT, EXIT_OK, EXIT_USAGE
from common.memory.process.budget import MIB, format_size
from common.memory.process.meter import pages

IMPOSSIBLE = 16 * MIB
"""A ceiling that every command refuses."""
ROOM = 1.3
"""Each command also runs under this many times the smallest ceiling."""
UNDER, OVER = 0.99, 1.08
"""Bounds of predicted over measured."""
OVER_BYTES, SMALL = 6 * MIB, 150 * MIB
"""Below a peak of ``SMALL`` a prediction may instead be this much too large."""
WATCHER_SHARE, WATCHER_BYTES = 1.03, 2 * MIB
"""Most that an outside watcher may see above the recorded peak: a sampler misses peaks and never exceeds them."""
WATCHER_SECONDS = 0.01
"""Interval between two readings of the watcher."""
AT_LEAST = "at least"
"""A refusal that comes before the input is read says this; the ceiling that it names may be refused once more."""
BUSY_EVERY, BUSY_PROCESSES = 10, 4
"""Every tenth session runs beside four busy processes."""
CHUNK = 6
"""Sessions drawn from one seed of hypothesis; the first is always the simplest one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command that is judged."""

    argv: tuple[str, ...]
    """Module and arguments, without ``--memory`` and ``--json``."""
    fresh: Path | None = None
    """Its output, removed before each run."""


class Session(Protocol):
    """Inputs and commands, drawn but not yet written; its ``repr`` is printed if something fails."""

    def steps(self, folder: Path) -> Iterator[Step]:
        """Write the inputs below ``folder`` and yield the commands in order; ends early if one ended badly."""
        ...


@dataclass(slots=True)
class Watcher:
    """Samples the memory of a process tree from outside: private pages, and shared ones once."""

    peak: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def __call__(self, pid: int) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self, pid: int) -> None:
        while not self._stop.wait(WATCHER_SECONDS):
            sizes = [pages(each) for each in _tree(pid)]
            # A child before ``exec`` shares all pages with its parent; they count once.
            total = sum(each.private for each in sizes) + max((each.shared for each in sizes), default=0)
            self.peak = max(self.peak, total)


def _tree(pid: int) -> list[int]:
    pids = [pid]
    for each in pids:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                pids += map(int, Path(f"/proc/{each}/task/{task}/children").read_text().split())
    return pids


@contextmanager
def busy_machine(processes: int) -> Iterator[None]:
    """Keep this many processes busy meanwhile; they end with this one, also if it is killed."""
    busy = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    others = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def options(
    parser: argparse.ArgumentParser,
    draw: Callable[[st.SearchStrategy[Any]], Any],
    values: Mapping[str, st.SearchStrategy[Sequence[str]]],
    left_out: Sequence[str],
) -> list[str]:
    """Draw some of a parser's options, each with a chance of a quarter.

    Parameters
    ----------
    values
        Values by the option's ``dest``, where the parser states no choices.
    left_out
        Options, by ``dest``, that the caller adds, or that cannot be judged.

    Raises
    ------
    KeyError
        If a new option of the parser is in none of these: it has to be drawn too.
    """
    words: list[str] = []
    for action in parser._actions:
        if not action.option_strings or action.dest in left_out or action.dest in COMMON:
            continue
        if action.choices is None and action.nargs != 0 and action.dest not in values:
            raise KeyError(f"{parser.prog} {action.option_strings[0]}: nothing to draw its values from")
        if draw(st.integers(0, 3)) < 3:
            continue
        words.append(action.option_strings[-1])
        if action.dest in values:
            words += draw(values[action.dest])
        elif action.choices is not None:
            words.append(str(draw(st.sampled_from(list(action.choices)))))
    return words


def one_word(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Sequence[str]]:
    """Return the strategy's values as the one word that follows an option."""
    return strategy.map(lambda value: [str(value)])


COMMON = ("help", "memory", "dry_run", "plan", "json", "report", "quiet", "verbose", "output", "device", "gpu_memory")
"""Options that are not drawn: they choose no work, or this machine cannot do it."""
SHARED_VALUES: dict[str, st.SearchStrategy[Sequence[str]]] = {
    "threads": one_word(st.integers(1, 2)),
    "seed": one_word(st.integers(0, 9)),
}
"""Values of options that every command has."""


def command_parser(parser: argparse.ArgumentParser, command: str) -> argparse.ArgumentParser:
    """Return the parser of one command."""
    groups = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    found: argparse.ArgumentParser = next(iter(groups))[command]
    return found


def judge(step: Step, *, quiet: bool) -> Iterator[dict[str, Any]]:
    """Run a command at an impossible ceiling, at the one that its refusal names, and at 1.3 times that.

    Yields
    ------
    dict
        A line for each run: its figures, and ``faults``, a list of what is wrong; empty if nothing is.
    """
    refused = _run(step, IMPOSSIBLE, walled=False)
    yield refused | {"faults": _refusal_faults(refused)}
    ceiling = int(refused.get("smallest", 0))
    if refused["exit"] != EXIT_DOES_NOT_FIT or not ceiling:
        return
    ran = _run(step, ceiling, walled=True)
    if ran["exit"] == EXIT_DOES_NOT_FIT and AT_LEAST in refused["stderr"]:
        yield ran | {"faults": _refusal_faults(ran)}
        ceiling = int(ran.get("smallest", 0))
        ran = _run(step, ceiling, walled=True)
    yield ran | {"faults": _faults(ran, ceiling, quiet=quiet)}
    if ran["exit"] == EXIT_OK:
        ceiling = int(ROOM * ceiling)
        ran = _run(step, ceiling, walled=True)
        yield ran | {"faults": _faults(ran, ceiling, quiet=quiet)}


def _refusal_faults(line: Mapping[str, Any]) -> list[str]:
    faults = _common_faults(line)
    if line["exit"] not in (EXIT_DOES_NOT_FIT, EXIT_USAGE, EXIT_BAD_INPUT):
        faults.append(f"exit {line['exit']} under {format_size(line['ceiling'])}")
    elif line["exit"] == EXIT_DOES_NOT_FIT and "smallest" not in line:
        faults.append("a refusal that names no ceiling")
    return faults


def _run(step: Step, ceiling: int, *, walled: bool) -> dict[str, Any]:
    argv = (sys.executable, "-m", *step.argv, "--memory", str(ceiling), "--json")
    watcher = Watcher()
    with tempfile.TemporaryFile() as errors:
        case = Case("random", argv, ceiling if walled else None, 1, "random", (), fresh=step.fresh)
        line = measure(case, errors=errors, watcher=watcher)
        errors.seek(0)
        text = errors.read().decode("utf-8", "replace")
    kept = ("exit", "process_seconds", "peak", "predicted", "predicted_over_measured", "kills", "smallest", "kind")
    line = {name: line[name] for name in kept if name in line}
    return {"argv": list(step.argv), "ceiling": ceiling, "watched": watcher.peak, "stderr": text[-2000:]} | line


def _common_faults(line: Mapping[str, Any]) -> list[str]:
    return ["a traceback"] if "traceback" in line["stderr"].lower() else []


def _faults(line: Mapping[str, Any], ceiling: int, *, quiet: bool) -> list[str]:
    faults = _common_faults(line)
    if line["exit"] not in (EXIT_OK, EXIT_BAD_INPUT, EXIT_USAGE):  # what only the content of an input shows
        faults.append(f"exit {line['exit']} at {format_size(ceiling)}")
    if line["kills"]:
        faults.append("killed")
    if line["exit"] != EXIT_OK:
        return faults
    peak, watched = line["peak"], line["watched"]
    if peak > ceiling:
        faults.append(f"peak {format_size(peak)} above {format_size(ceiling)}")
    if watched > WATCHER_SHARE * peak + WATCHER_BYTES:
        faults.append(f"watched {format_size(watched)}, recorded {format_size(peak)}")
    ratio = line.get("predicted_over_measured")
    if ratio is None:
        return [*faults, "no prediction"]
    if ratio < UNDER:
        faults.append(f"predicted {ratio:.3f} of the measured peak")
    excess = line["predicted"] - line["predicted"] / ratio
    if quiet and ratio > OVER and not (peak < SMALL and excess <= OVER_BYTES):
        faults.append(f"predicted {ratio:.3f} of the measured peak")
    return faults


@dataclass(slots=True)
class Campaign:
    """Sessions of one application drawn from one seed, with their lines in ``bench/random-NAME-SEED.jsonl``."""

    name: str
    sessions: st.SearchStrategy[Session]
    seed: int
    end: float
    """``time.monotonic()`` at which no further session begins."""
    path: Path | None = None
    reduce: bool = True
    """Whether the smallest session that fails is searched for."""
    lines: list[dict[str, Any]] = field(default_factory=list)
    _judged: dict[str, list[str]] = field(default_factory=dict)
    _reduced: set[str] = field(default_factory=set)
    """Kinds of faults of which the smallest session was found; further ones are counted, not reduced."""

    def run(self, *, chunks: int | None = None, size: int = CHUNK) -> None:
        """Judge chunks of sessions until the clock ends or ``chunks`` are done; finished ones are not repeated."""
        if self.path is not None and self.path.is_file():
            self.lines += map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
        chunk = 1 + max((line["chunk"] for line in self.lines if "done" in line), default=-1)
        last = None if chunks is None else chunks
        while time.monotonic() < self.end and (last is None or chunk < last):
            self._chunk(chunk, size)
            chunk += 1

    def _chunk(self, chunk: int, size: int) -> None:
        number = 0

        @seed(self.seed * 1_000_000 + chunk)
        @settings(
            max_examples=size,
            phases=(Phase.generate, Phase.shrink) if self.reduce else (Phase.generate,),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(self.sessions)
        def holds(session: Session) -> None:
            nonlocal number
            number += 1
            busy = (chunk * size + number) % BUSY_EVERY == 0
            faults = self._session(session, chunk, busy=busy)
            new = [fault for fault in faults if _kind(fault) not in self._reduced]
            assert not new, f"{session}: {'; '.join(new)}"

        try:
            holds()
        except AssertionError as error:  # the smallest session that fails
            text = str(error).splitlines()[0]
            sys.stderr.write(f"{text}\n")
            self._append({"chunk": chunk, "smallest_failure": text})
            self._reduced |= {_kind(fault) for line in self.lines for fault in line.get("faults", ())}
        if time.monotonic() < self.end:
            self._append({"chunk": chunk, "done": True})

    def _session(self, session: Session, chunk: int, *, busy: bool) -> list[str]:
        if (known := self._judged.get(repr(session))) is not None:
            return known
        if time.monotonic() >= self.end:
            return []
        faults: list[str] = []
        quiet = not busy and os.getloadavg()[0] < len(os.sched_getaffinity(0))
        with tempfile.TemporaryDirectory() as folder, busy_machine(BUSY_PROCESSES if busy else 0):
            for step in session.steps(Path(folder)):
                for line in judge(step, quiet=quiet):
                    self._append({"chunk": chunk, "busy": busy, "quiet": quiet} | line)
                    faults += [f"{' '.join(step.argv[:2])}: {fault}" for fault in line["faults"]]
                if faults:
                    break
        self._judged[repr(session)] = faults
        return faults

    def _append(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")

    def summary(self) -> dict[str, Any]:
        """Return counts over all lines; ``failed`` counts runs with a fault."""
        runs = [line for line in self.lines if "argv" in line]
        ran = [line for line in runs if line["exit"] == EXIT_OK]
        ratios = [line["predicted_over_measured"] for line in ran if "predicted_over_measured" in line]
        return {
            "commands": sum(line["ceiling"] == IMPOSSIBLE for line in runs),
            "runs": len(runs),
            "exits": dict(sorted(Counter(str(line["exit"]) for line in runs).items())),
            "failed": sum(bool(line["faults"]) for line in runs),
            "above": sum(line["peak"] > line["ceiling"] for line in ran),
            "kills": sum(line["kills"] for line in runs),
            "least_predicted": min(ratios, default=1.0),
            "within": round(sum(UNDER <= ratio <= OVER for ratio in ratios) / max(1, len(ratios)), 4),
            "faults": dict(Counter(fault for line in runs for fault in line["faults"]).most_common(20)),
        }


def _kind(fault: str) -> str:
    """Return a fault without its numbers and its command."""
    return "".join(char for char in fault.rpartition(": ")[2] if not char.isdigit())


NO_FAULTS = Bound("result.failed", at_most=0)
SEEDS = (1, 2)
"""Seeds of the sessions that the suite draws, each for ``SECONDS`` seconds."""


def declare(suite: Suite, name: str, module: str) -> None:
    """Declare a case for each seed of an application's random commands, drawn by ``python -m module``."""
    seconds = os.environ.get("SECONDS", "600")
    for number in SEEDS:
        argv = ["-m", module, "--seed", number, "--seconds", seconds]
        suite.case(f"random-{name}-{number}", argv, bounds=(NO_FAULTS,), exits=(0, 1))


def main(name: str, sessions: st.SearchStrategy[Session], argv: Sequence[str] | None = None) -> int:
    """Draw and judge sessions of an application until the clock ends; exit 1 if anything failed."""
    parser = argparse.ArgumentParser(prog=f"random {name}", description="Draw command lines, run and judge them.")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="what is drawn (default 1)")
    parser.add_argument("--seconds", type=float, default=600, metavar="S", help="how long to draw (default 600)")
    args = parser.parse_args(argv)
    end = time.monotonic() + args.seconds
    campaign = Campaign(name, sessions, args.seed, end, Path("bench") / f"random-{name}-{args.seed}.jsonl")
    campaign.run()
    summary = campaign.summary()
    sys.stdout.write(json.dumps(summary) + "\n")
    return int(summary["failed"] > 0)
