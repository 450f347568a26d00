"""``bench --quick``: time and memory of a few commands on the user's own data, predicted and measured.

Each command runs as a user would run it, in a process tree of its own under the ceiling. Costs that its
plan has to measure are measured before, by the same command with ``--dry-run``, so that the figures are those of the
work.
"""

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import EXIT_DOES_NOT_FIT, EXIT_OK, EXIT_UNFORESEEN
from common.memory.process import child
from common.memory.process.budget import format_size


@dataclass(frozen=True, slots=True)
class Step:
    """One command to measure."""

    name: str
    """``"train"``"""
    arguments: tuple[object, ...]
    """The rest of the command line, without ``--memory``, ``--threads`` and ``--json``."""
    output: Path | None = None
    """A file or folder that is removed before each run."""
    quality: Callable[[Mapping[str, Any]], str] = lambda results: ""
    """Function that returns the quality to show, from the record's ``results``."""


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one step: medians over its runs."""

    step: str
    exit_code: int
    seconds: float | None = None
    """From start to end of the process."""
    processor_seconds: float | None = None
    """Processor seconds of the process tree."""
    ceiling_bytes: int | None = None
    predicted_bytes: int | None = None
    measured_bytes: int | None = None
    """The largest of the runs."""
    quality: str = ""
    """Quality of the last run; the error, where the exit code is not 0."""

    def cells(self) -> list[str]:
        """The row of the table."""
        if self.exit_code != EXIT_OK:
            return [self.step, *["-"] * 5, f"exit {self.exit_code}: {self.quality}"]
        assert self.seconds is not None and self.processor_seconds is not None
        assert self.predicted_bytes is not None and self.measured_bytes is not None
        return [
            self.step,
            f"{self.seconds:.2f}",
            f"{self.processor_seconds:.2f}",
            format_size(self.predicted_bytes),
            format_size(self.measured_bytes),
            f"{self.predicted_bytes / self.measured_bytes:.3f}",
            self.quality,
        ]


HEAD = ["command", "seconds", "CPU s", "predicted", "measured", "ratio", "result"]


def run(application: str, steps: Sequence[Step], *, options: Sequence[str], repeats: int, as_json: bool) -> int:
    """Run every step and print the table; stops at the first one that fails.

    Parameters
    ----------
    options
        ``--memory`` and ``--threads`` with their values, for every step.
    repeats
        Runs of each step.

    Returns
    -------
    int
        0, or the exit code of the step that failed.
    """
    rows: list[Row] = []
    for step in steps:
        sys.stderr.write(f"{application} bench: {step.name} ...\n")
        rows.append(_measure(application, step, options, repeats))
        if rows[-1].exit_code != EXIT_OK:
            break
    if as_json:
        written = [{name: getattr(row, name) for name in Row.__dataclass_fields__} for row in rows]
        sys.stdout.write(json.dumps({"application": application, "rows": written}) + "\n")
    else:
        if ceiling := next((row.ceiling_bytes for row in rows if row.ceiling_bytes), None):
            sys.stdout.write(f"ceiling {format_size(ceiling)}\n")
        sys.stdout.write(_table([HEAD, *(row.cells() for row in rows)]))
    return rows[-1].exit_code


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; figures to the right, words to the left."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEAD))]
    lines = []
    for row in rows:
        cells = [
            text.ljust(w) if at in (0, len(HEAD) - 1) else text.rjust(w)
            for at, (text, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def _measure(application: str, step: Step, options: Sequence[str], repeats: int) -> Row:
    from statistics import median

    arguments = [step.name, *map(str, step.arguments), *options, "--json"]
    first = _timed(application, step, [*arguments, "--dry-run"])
    if isinstance(first, Row):
        return first
    runs = []
    for _ in range(repeats):
        run = _timed(application, step, arguments)
        if isinstance(run, Row):
            return run
        runs.append(run)
    record = runs[-1][1]
    return Row(
        step.name,
        EXIT_OK,
        round(median(seconds for seconds, _, _ in runs), 3),
        round(median(used for _, _, used in runs), 3),
        record["budget"]["host_bytes"],
        record["plan"]["predicted_peak_bytes"],
        max(one["measured"]["peak_bytes"] for _, one, _ in runs),
        step.quality(record["results"]),
    )


def _timed(application: str, step: Step, arguments: Sequence[str]) -> tuple[float, dict[str, Any], float] | Row:
    """Run once; returns seconds, the record, and the tree's processor seconds, or the row of a run that failed."""
    if step.output is not None:
        shutil.rmtree(step.output, ignore_errors=True)
        step.output.unlink(missing_ok=True)
    before, began = _processor_seconds(), time.monotonic()
    done = child.run_command(f"apps.{application}", arguments)
    seconds = time.monotonic() - began
    if done.exit.status != EXIT_OK:
        return _failed(application, step, done)
    return seconds, json.loads(done.stdout), _processor_seconds() - before


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _failed(application: str, step: Step, done: child.Finished) -> Row:
    code = done.exit.status if done.exit.status > 0 else EXIT_UNFORESEEN
    if code == EXIT_DOES_NOT_FIT:
        with suppress(ValueError, KeyError):
            smallest = format_size(json.loads(done.stdout)["smallest_feasible_bytes"])
            return Row(step.name, code, quality=f"does not fit; {smallest} would do")
    return Row(step.name, code, quality=done.last_line.removeprefix(f"{application} {step.name}: ") or str(done.exit))
