"""Compare predicted with measured peaks of training steps, over a grid of configurations.

A configuration is a function of an application that makes network, optimiser and step (``trace.Prepared``), with its
arguments. The prediction is the planner's own: ``trace.probe``, run in its child process. The measurement is made in a
fresh process, which warms up as the command does, makes the same objects, runs steps and reads the kernel's high-water
mark.

An application's ``bench/promise_prediction.py`` (``bench/promise/prediction.py`` in imaging) lists the configurations
and calls ``main``. A fifth of them is drawn from a seed, so that nothing can be fitted to them. One line per result is
appended to a file, and an interrupted grid resumes from it. The order is shuffled, so that the first few configurations
are as mixed as all of them.
"""

import argparse
import importlib
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.bench.harness import Bound, current_commit
from common.memory.costs import baseline, trace
from common.memory.costs.probes import Costs, Probe, resolve
from common.memory.costs.store import CostStore
from common.memory.process import glibc, no_compiler
from common.memory.process.budget import MIB
from common.memory.process.meter import lifetime_peak, reset_peak, resident

log = logging.getLogger("peakline.prediction")

LEAST_BYTES = 128 * MIB
"""Runs whose peak is less than this above the baseline are recorded but not judged."""
LEAST_RUNS = 4
"""A row of the table of errors needs at least this many runs."""
STEPS = 2
"""The first step creates the optimiser's state, the second is the first that has it; later steps are alike."""
AT_ONCE = 10
"""Configurations that one child predicts, so that it warms up once for all of them."""
DRAWN_SHARE = 5
"""One configuration in this many is drawn from the seed."""
TERMS = ("parameters", "gradients", "optimizer", "activations", "workspace", "kernels", "unseen")
"""The numbers of a traced step that add up to its peak above the baseline."""

BOUNDS = (
    Bound("result.median_error", at_most=0.02),
    Bound("result.p95_error", at_most=0.05),
    Bound("result.under", at_most=0.01),
)
"""Each application has to meet these by itself."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One step to predict and to measure."""

    labels: tuple[tuple[str, str], ...]
    """Pairs of axis and value, ``("network", "unet"), ("precision", "bf16"), ...``; the values make the name."""
    prepare: str
    """``"module:function"``; called with the arguments, it returns ``trace.Prepared``."""
    arguments: str
    """A JSON object."""
    drawn: bool = False
    """True if drawn from the seed."""

    @classmethod
    def of(
        cls, labels: Mapping[str, object], prepare: str, arguments: Mapping[str, Any], drawn: bool = False
    ) -> "Configuration":
        """Build a configuration from plain values; ``arguments`` must be JSON-serialisable."""
        named = tuple((axis, str(value)) for axis, value in labels.items())
        return cls(named, prepare, json.dumps(arguments, sort_keys=True), drawn)

    @property
    def name(self) -> str:
        """Unique in the grid."""
        return " ".join(value for _, value in self.labels)


@dataclass(frozen=True, slots=True)
class Grid:
    """An application's configurations, and the process they run in."""

    name: str
    configurations: Sequence[Configuration]
    draw: Callable[[random.Random], Configuration]
    """Draws a configuration from a random number generator."""
    warm_up: str
    """``"module:function"``, the command's own warm-up (``common.memory.costs.baseline``)."""
    libraries: tuple[str, ...]
    """Distributions whose versions the numbers depend on."""
    huge_pages: bool
    """True if the command uses transparent huge pages."""
    threads: int = 2

    def ordered(self, seed: int, *, quick: bool) -> list[Configuration]:
        """Return listed and drawn configurations, mixed: every fifth is drawn.

        Parameters
        ----------
        quick
            Only the first 25.
        """
        listed = list(self.configurations)
        random.Random(0).shuffle(listed)
        source = random.Random(seed)
        drawn: dict[str, Configuration] = {}
        taken = {each.name for each in listed}
        while len(drawn) < -(-len(listed) // (DRAWN_SHARE - 1)):
            one = self.draw(source)
            if one.name not in taken:
                drawn.setdefault(one.name, one)
        fresh, mixed = iter(drawn.values()), list[Configuration]()
        for start in range(0, len(listed), DRAWN_SHARE - 1):
            mixed += [*listed[start : start + DRAWN_SHARE - 1], next(fresh)]
        return mixed[:25] if quick else mixed

    @property
    def base(self) -> Probe:
        """Return the probe of the baseline."""
        return baseline.probe(self.warm_up, libraries=self.libraries, threads=self.threads)

    def traced(self, each: Configuration) -> Probe:
        """Return the probe that predicts ``each``."""
        arguments = json.loads(each.arguments)
        return trace.probe(
            each.prepare, warm_up=self.warm_up, libraries=self.libraries, threads=self.threads, **arguments
        )

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables of the command's process."""
        return glibc.environment(self.threads) | (glibc.tunables(huge_pages=True) if self.huge_pages else {})


def run(grid: Grid, file: Path, *, seed: int, quick: bool) -> list[dict[str, Any]]:
    """Predict and measure the configurations that ``file`` lacks for this commit and seed.

    Parameters
    ----------
    file
        JSON lines; new ones are appended.

    Returns
    -------
    list of dict
        All lines of this commit and seed.
    """
    os.environ.update(grid.environment)  # a probe's child inherits the environment of the command's child
    key = {"commit": current_commit(), "seed": seed}
    lines = [line for line in read(file) if line["commit"] == key["commit"] and line["seed"] in (seed, None)]
    done = {line["name"] for line in lines}
    file.parent.mkdir(parents=True, exist_ok=True)
    ahead = [each for each in grid.ordered(seed, quick=quick) if each.name not in done]
    with tempfile.TemporaryDirectory() as empty:  # no plan is cached, only the costs of operators
        store = CostStore(Path(empty))
        for start in range(0, len(ahead), AT_ONCE):
            some = ahead[start : start + AT_ONCE]
            costs = store.collect([grid.base, *map(grid.traced, some)], ceiling=None)
            for each in some:
                line = compare(each, grid, costs) | key | {"seed": seed if each.drawn else None}
                lines.append(line)
                with file.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
                log.info("%4d  %+6.2f %%  %s", len(lines), 100 * line["error"], each.name)
    return lines


def read(file: Path) -> list[dict[str, Any]]:
    """Return the lines of ``file``; none if it cannot be read."""
    with suppress(OSError):
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return []


def compare(each: Configuration, grid: Grid, costs: Costs) -> dict[str, Any]:
    """Return one line: predicted and measured bytes above the baseline, their errors, and the whole process's."""
    priced = costs[grid.traced(each)]
    terms = {name: int(priced[name]) for name in TERMS}
    began = time.monotonic()
    measured = _measured(each, grid)
    predicted, above = sum(terms.values()), measured["peak"] - measured["baseline"]
    return {
        "name": each.name,
        "labels": dict(each.labels),
        "drawn": each.drawn,
        "predicted": predicted,
        "measured": above,
        "error": round(predicted / above - 1, 5),
        "whole_error": round((predicted + int(costs[grid.base]["bytes"])) / measured["peak"] - 1, 5),
        "terms": terms,
        "baseline": measured["baseline"],
        "steps": measured["steps"],
        "seconds": round(time.monotonic() - began, 1),
    }


def _measured(each: Configuration, grid: Grid) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "common.bench.prediction", each.prepare, each.arguments, grid.warm_up],
        env=os.environ | grid.environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{each.name}: {done.stderr.strip().splitlines()[-1:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(prepare: str, arguments: str, warm_up: str) -> dict[str, Any]:
    """Warm up, prepare the step and run it. Call it in a fresh process.

    Returns
    -------
    dict
        ``baseline``, resident bytes after the warm-up; ``steps``, the peak of each step above it, where the first step
        includes the making of the objects; ``peak``, the largest peak of the process.
    """
    module, name = prepare.split(":")
    function = getattr(importlib.import_module(module), name)
    glibc.pin_thresholds()
    no_compiler.leave_out()  # as a command's own process does, and a probe's child
    resolve(warm_up)()
    glibc.trim()
    base, peaks = resident(), []
    reset_peak()
    *_kept, step = function(**json.loads(arguments))
    for _ in range(STEPS):
        step()
        peaks.append(lifetime_peak())
        reset_peak()
    return {"baseline": base, "peak": max(peaks), "steps": [peak - base for peak in peaks]}


def summary(lines: Iterable[Mapping[str, Any]], *, least: int = LEAST_BYTES) -> dict[str, Any]:
    """Return error statistics of the runs that are large enough to be judged.

    Parameters
    ----------
    least
        Measured bytes above the baseline from which on a run is judged.
    """
    everything = list(lines)
    judged = [line for line in everything if line["measured"] >= least]
    errors = sorted(abs(line["error"]) for line in judged)
    whole = sorted(abs(line["whole_error"]) for line in judged)
    drawn = sorted(abs(line["error"]) for line in judged if line["drawn"])
    return {
        "configurations": len(everything),
        "judged": len(judged),
        "drawn": len(drawn),
        "median_error": statistics.median(errors),
        "p95_error": quantile(errors, 0.95),
        "under": sum(line["error"] < 0 for line in judged) / len(judged),
        "largest_under": -min(line["error"] for line in judged),
        "drawn_median_error": statistics.median(drawn) if drawn else None,
        "drawn_p95_error": quantile(drawn, 0.95) if drawn else None,
        "whole_median_error": statistics.median(whole),
        "whole_p95_error": quantile(whole, 0.95),
        "whole_largest_error": whole[-1],
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the sorted values do not exceed."""
    return ordered[max(0, -(-int(1000 * share) * len(ordered) // 1000) - 1)]


def families(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a table: for each axis value with enough runs, errors in per cent and the number of under-predictions."""
    groups: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        if line["measured"] >= LEAST_BYTES:
            for label in line["labels"].items():
                groups.setdefault(label, []).append(line["error"])
    rows = [f"{'':32} {'runs':>4} {'median':>7} {'p95':>6} {'under':>5}"]
    for (axis, value), errors in sorted(groups.items()):
        if len(errors) >= LEAST_RUNS:
            absolute = sorted(100 * abs(error) for error in errors)
            under = sum(error < 0 for error in errors)
            median, p95 = statistics.median(absolute), quantile(absolute, 0.95)
            rows.append(f"{axis + ' ' + value:32} {len(errors):4} {median:7.2f} {p95:6.2f} {under:5}")
    return rows


def main(grid: Callable[[], Grid], argv: Sequence[str] | None = None) -> int:
    """Run an application's grid and print its summary; the last line on stdout is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seed",
        type=int,
        help="seed of the drawn configurations (default: the last one used for this commit, or the clock)",
    )
    parser.add_argument("--quick", action="store_true", help="the first 25 configurations")
    parser.add_argument("--file", type=Path, help="JSON lines with the results")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("peakline").setLevel(logging.INFO)
    chosen = grid()
    file = args.file or Path(f"bench/prediction-{chosen.name}.jsonl")
    begun = [line["seed"] for line in read(file) if line["commit"] == current_commit() and line["seed"] is not None]
    seed = args.seed if args.seed is not None else begun[-1] if begun else int(time.time())
    log.info("seed %d", seed)
    lines = run(chosen, file, seed=seed, quick=args.quick)
    sys.stderr.write("\n".join(families(lines)) + "\n")
    sys.stdout.write(json.dumps({"seed": seed, **summary(lines)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(measure(*sys.argv[1:])) + "\n")
