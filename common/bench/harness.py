"""The benchmark harness: a benchmark is a case in a suite and runs in a fresh process under a kernel limit.

A suite is a module that declares cases and ratios and ends in ``sys.exit(suite.main())``. Each run of a case appends
one JSON line to ``bench/<suite>.jsonl``. A case that has been run for this commit is skipped unless ``--again`` is
passed. Cases of one group run in turn, A B A B, so that a drift of the machine's speed cancels in their ratio.
"""

import argparse
import fnmatch
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import IO, Any

from common.errors import EXIT_DOES_NOT_FIT
from common.memory.costs.baseline import START
from common.memory.footprint import Footprint, Term
from common.memory.process import guard
from common.memory.process.budget import KIB, format_size

VERSIONS = ("torch", "monai", "implicit", "openvino", "numpy", "scipy", "pyarrow", "pandas", "pydicom", "nibabel")
"""Distributions whose versions are written into every line."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The range a number must lie in for the case to pass."""

    metric: str
    """A name in the case's line: ``seconds``, ``process_seconds``, ``processor_seconds`` (of the whole tree),
    ``working_seconds``, ``peak``, ``predicted_over_measured``, or ``result.<key>``."""
    at_least: float | None = None
    """Lower bound, inclusive."""
    at_most: float | None = None
    """Upper bound, inclusive."""
    spread: bool = False
    """Judge (largest - smallest) / median over the repeats instead of the median."""

    def holds(self, value: float) -> bool:
        """Return True if ``value`` is within the bounds; NaN is not."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        low = "" if self.at_least is None else f"{self.at_least:g} <= "
        high = "" if self.at_most is None else f" <= {self.at_most:g}"
        return f"{low}{'spread of ' if self.spread else ''}{self.metric}{high}"

    def of(self, values: Sequence[float]) -> float:
        """Return the number that is judged, from one value per run."""
        middle = statistics.median(values)
        return (max(values) - min(values)) / middle if self.spread else middle


@dataclass(frozen=True, slots=True)
class Case:
    """One command to measure."""

    name: str
    """Unique in the suite."""
    argv: tuple[str, ...]
    """The command; its last line on stdout may be a JSON object: a run record, or a plain result."""
    ceiling: int | None
    """Bytes of the cgroup it runs in; ``None``: no limit."""
    repeats: int
    """Number of runs."""
    group: str
    """Cases of one group run in turn."""
    bounds: tuple[Bound, ...]
    """Bounds on the medians over the repeats."""
    exits: tuple[int, ...] = (0,)
    """Exit codes that are right. After a refusal (3) only the ceiling is judged."""
    fresh: Path | None = None
    """An output folder that is removed before each run."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A comparison between two cases of one group: the median of the pairwise ratios."""

    name: str
    over: str
    under: str
    bound: Bound


@dataclass(slots=True)
class Suite:
    """A named list of cases."""

    name: str
    directory: Path = field(default_factory=lambda: Path("bench"))
    cases: list[Case] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)

    def case(
        self,
        name: str,
        argv: Sequence[object],
        *,
        ceiling: int | None = None,
        repeats: int = 1,
        group: str | None = None,
        bounds: Sequence[Bound] = (),
        exits: Sequence[int] = (0,),
        fresh: Path | None = None,
    ) -> None:
        """Declare a case; see ``Case`` for the fields. An ``argv`` that starts with ``-m`` runs this interpreter."""
        command = [str(word) for word in argv]
        if command[0] == "-m":
            command.insert(0, sys.executable)
        case = Case(name, tuple(command), ceiling, repeats, group or name, tuple(bounds), tuple(exits), fresh)
        self.cases.append(case)

    def ratio(self, name: str, over: str, under: str, bound: Bound) -> None:
        """Declare a bound on the metric of case ``over`` divided by that of case ``under``."""
        self.ratios.append(Ratio(name, over, under, bound))

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the selected cases and print the table.

        Returns
        -------
        int
            0 if every bound holds, else 1.
        """
        parser = argparse.ArgumentParser(prog=f"bench {self.name}")
        parser.add_argument("--only", default="*", metavar="PATTERN", help="cases by name; several with commas")
        parser.add_argument("--again", action="store_true", help="run cases that were done for this commit too")
        parser.add_argument("--list", action="store_true", help="name the cases and stop")
        args = parser.parse_args(argv)
        patterns = args.only.split(",")
        chosen = [case for case in self.cases if any(fnmatch.fnmatch(case.name, pattern) for pattern in patterns)]
        if args.list:
            sys.stdout.write("\n".join(case.name for case in chosen) + "\n")
            return 0
        commit = current_commit()
        done = [] if args.again else [line for line in self._lines() if line["commit"] == commit]
        for group in dict.fromkeys(case.group for case in chosen):
            members = [case for case in chosen if case.group == group]
            if all(sum(line["name"] == case.name for line in done) >= case.repeats for case in members):
                continue
            done += self._run_group(members, commit)
        return _report(chosen, self.ratios, done)

    def _run_group(self, members: Sequence[Case], commit: str) -> list[dict[str, Any]]:
        lines = []
        for turn in range(max(case.repeats for case in members)):
            for case in members:
                if turn < case.repeats:
                    sys.stderr.write(f"{self.name}: {case.name} ({turn + 1}/{case.repeats}) ...\n")
                    lines.append(measure(case) | {"commit": commit})
                    self._append(lines[-1])
        return lines

    @property
    def _path(self) -> Path:
        return self.directory / f"{self.name}.jsonl"

    def _append(self, line: Mapping[str, Any]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        with suppress(OSError):
            return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]
        return []


def measure(
    case: Case,
    directory: Path | None = None,
    *,
    errors: IO[bytes] | None = None,
    watcher: Callable[[int], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Any]:
    """Run a case once inside its cgroup.

    Parameters
    ----------
    directory
        Working directory of the command; the current one by default.
    errors
        A file for what it writes on stderr; this process's stderr by default.
    watcher
        Called with its pid; the context that it returns is open while the command runs.

    Returns
    -------
    dict
        The line for ``bench/<suite>.jsonl``.
    """
    if case.fresh is not None:
        shutil.rmtree(case.fresh, ignore_errors=True)
    wall = guard.hard_wall(case.ceiling) if case.ceiling else None
    began = time.monotonic()
    child = subprocess.Popen(
        case.argv,
        stdout=subprocess.PIPE,
        stderr=errors,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=directory,
        preexec_fn=partial(guard.enter, wall),
    )
    assert child.stdout is not None
    with watcher(child.pid):
        out = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    kills = guard.take_down(wall)
    line: dict[str, Any] = {
        "name": case.name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()} {len(os.sched_getaffinity(0))} cpus",
        "versions": {d.name: d.version for d in distributions() if d.name.lower() in VERSIONS},
        "exit": child.returncode,
        "process_seconds": round(seconds, 3),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "ceiling": case.ceiling,
        "walled": wall is not None,
        "peak": usage.ru_maxrss * KIB,
        # The kill of a probe appears only in the plan's list of rejected settings.
        "kills": kills + out.count("killed by signal 9") + (child.returncode == -signal.SIGKILL),
    }
    line |= _of_record(_last_object(out))
    # A peer that writes more after its work, for later comparisons, reports itself when the work was done.
    elapsed = line["result"].get("elapsed", line["process_seconds"])
    return {"working_seconds": elapsed} | line | {"seconds": elapsed}


def _last_object(text: str) -> dict[str, Any]:
    for line in reversed(text.strip().splitlines()):
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                return value
    return {}


def _of_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return the fields taken from the command's output: the figures of a run record, or the plain result."""
    if "measured" not in record:
        return {"result": record}
    peak, baseline = record["measured"]["peak_bytes"], record["measured"]["floor_bytes"]
    line = {
        "peak": peak,
        "baseline": baseline,
        "result": record["results"],
        "kind": record.get("error", {}).get("kind"),
    }
    loaded = [phase["start"] + phase["seconds"] for phase in record["measured"]["phases"] if phase["name"] == START]
    if loaded:  # scripts start their clocks after their imports
        line["working_seconds"] = round(record["seconds"] - loaded[0], 3)
    if "smallest_feasible_bytes" in record:
        line["smallest"] = record["smallest_feasible_bytes"]
    if record["plan"]:
        predicted, measured = _compared(record)
        line |= {"predicted": predicted, "knobs": record["plan"]["knobs"]}
        if measured:
            line["predicted_over_measured"] = round(predicted / measured, 4)
            line["above_baseline"] = round((predicted - baseline) / max(1, measured - baseline), 4)
    return line


def _compared(record: Mapping[str, Any]) -> tuple[int, int]:
    """Return the predicted and the measured peak without the phase that measured costs.

    A first run measures costs in child processes. The plan states that phase as measured, which is no prediction, so
    it is left out on both sides.
    """
    phases = record["measured"]["phases"]
    probed = {"plan", "probe"} if any(phase["name"] == "probe" for phase in phases) else set()
    terms = [Term(**{**term, "phases": tuple(term["phases"])}) for term in record["plan"]["terms"]]
    footprint = Footprint.of(term for term in terms if not probed & set(term.phases))
    measured = [phase["peak_bytes"] for phase in phases if phase["name"] not in probed]
    return footprint.peak_bytes, max(measured, default=0)  # 0: only planned


def value_of(line: Mapping[str, Any], metric: str) -> float:
    """Return a number of a line by its dotted name; NaN if it is absent.

    Examples
    --------
    >>> value_of({"result": {"recall": 0.5}}, "result.recall")
    0.5
    """
    value: Any = line
    for key in metric.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return float("nan")
        value = value[key]
    return float(value)


def _report(cases: Iterable[Case], ratios: Iterable[Ratio], lines: Sequence[Mapping[str, Any]]) -> int:
    failed = 0
    by_name = {case.name: [line for line in lines if line["name"] == case.name][-case.repeats :] for case in cases}
    for case in cases:
        runs = by_name[case.name]
        seconds = [run["seconds"] for run in runs]
        peak = max(run["peak"] for run in runs)
        text = f"{case.name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}, n={len(runs)}), peak {format_size(peak)}"  # noqa: E501
        refused = runs[-1]["exit"] == EXIT_DOES_NOT_FIT
        if refused:
            text += f", refused: {format_size(runs[-1].get('smallest', 0))} would do"
        elif "predicted_over_measured" in runs[-1]:
            text += f", predicted {format_size(runs[-1]['predicted'])} ({runs[-1]['predicted_over_measured']:.3f})"
        sys.stdout.write(text + "\n")
        failed += _judge_exit(case, [run["exit"] for run in runs])
        implied = [Bound("peak", at_most=case.ceiling), Bound("kills", at_most=0)] if case.ceiling else []
        for bound in (*implied, *(() if refused else case.bounds)):
            failed += _judge(bound, bound.of([value_of(run, bound.metric) for run in runs]))
    for ratio in ratios:
        if ratio.over in by_name and ratio.under in by_name:
            pairs = list(zip(by_name[ratio.over], by_name[ratio.under], strict=False))
            values = [value_of(a, ratio.bound.metric) / value_of(b, ratio.bound.metric) for a, b in pairs]
            sys.stdout.write(f"{ratio.name}: {ratio.over} / {ratio.under}\n")
            failed += _judge(ratio.bound, statistics.median(values))
    sys.stdout.write(f"{'FAIL' if failed else 'PASS'}: {failed} bounds missed\n")
    return 1 if failed else 0


def _judge_exit(case: Case, exits: Sequence[int]) -> int:
    wrong = [code for code in exits if code not in case.exits]
    if wrong:
        sys.stdout.write(f"  FAIL  exit {', '.join(map(str, wrong))}\n")
    return bool(wrong)


def _judge(bound: Bound, value: float) -> int:
    holds = bound.holds(value)
    sys.stdout.write(f"  {'pass' if holds else 'FAIL'}  {value:.6g}  ({bound})\n")
    return 0 if holds else 1


def current_commit() -> str:
    """Return the short hash of the commit, followed by ``-dirty`` if the working tree differs from it."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("-dirty" if dirty.stdout.strip() else "")
