"""Predicted against measured peaks of training steps, over a grid of configurations.

Each configuration is a function of an application that makes network, optimiser and step (``trace.Prepared``), with
its arguments. The prediction is the planner's own: ``trace.probe``, measured in its child. The measurement is a fresh
process that warms up as the command does, makes the same objects and runs steps, reading the kernel's high-water mark.

An application's ``bench/promise_prediction.py`` lists the configurations and ends in ``main``. A fifth of them is drawn
from a seed, so that nothing can be fitted to them. Results are appended one line each, and a grid goes on where it was
left; configurations come in an order in which the first few are as mixed as all.
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
from common.memory.costs import floor, trace
from common.memory.costs.probes import Costs, Probe, resolve
from common.memory.costs.store import CostStore
from common.memory.process import glibc
from common.memory.process.budget import MIB
from common.memory.process.meter import lifetime_peak, reset_peak, resident

log = logging.getLogger("peakline.prediction")

LEAST_BYTES = 128 * MIB
"""Runs whose peak is less above the floor than this are kept, and not judged."""
LEAST_RUNS = 4
"""Fewer make no row of the table of errors."""
STEPS = 2
"""The first makes the optimiser's state, the second is the first with it; later ones are alike."""
AT_ONCE = 10
"""Configurations that one child predicts, so that it warms up once for all of them."""
DRAWN_SHARE = 5
"""One in so many configurations is drawn from the seed."""
TERMS = ("parameters", "gradients", "optimizer", "activations", "workspace", "kernels", "unseen")
"""Which of a traced step's numbers add up to its peak above the floor."""

BOUNDS = (
    Bound("result.median_error", at_most=0.02),
    Bound("result.p95_error", at_most=0.05),
    Bound("result.under", at_most=0.01),
)
"""The issue's, for each application by itself."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One step to predict and to measure."""

    labels: tuple[tuple[str, str], ...]
    """What it is, by axis: ``("network", "unet"), ("precision", "bf16"), ...``; they make its name."""
    prepare: str
    """``"module:function"``, called with the arguments, returns ``trace.Prepared``."""
    arguments: str
    """A JSON object."""
    drawn: bool = False
    """Whether the seed made it."""

    @classmethod
    def of(
        cls, labels: Mapping[str, object], prepare: str, arguments: Mapping[str, Any], drawn: bool = False
    ) -> "Configuration":
        """Build from plain values."""
        named = tuple((axis, str(value)) for axis, value in labels.items())
        return cls(named, prepare, json.dumps(arguments, sort_keys=True), drawn)

    @property
    def name(self) -> str:
        """Unique in the grid."""
        return " ".join(value for _, value in self.labels)


@dataclass(frozen=True, slots=True)
class Grid:
    """An application's configurations, and the process that they run in."""

    name: str
    configurations: Sequence[Configuration]
    draw: Callable[[random.Random], Configuration]
    """Makes one from a source of random numbers."""
    warm_up: str
    """As the command's (``common.memory.costs.floor``)."""
    libraries: tuple[str, ...]
    """Distributions whose versions the numbers depend on."""
    huge_pages: bool
    """Whether the command asks for them."""
    threads: int = 2

    def ordered(self, seed: int, *, quick: bool) -> list[Configuration]:
        """Listed and drawn ones, mixed: every fifth is drawn; ``quick``: the first 25 of them."""
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
        """What the process holds before it makes anything."""
        return floor.probe(self.warm_up, libraries=self.libraries, threads=self.threads)

    def traced(self, each: Configuration) -> Probe:
        """What predicts one of them."""
        arguments = json.loads(each.arguments)
        return trace.probe(
            each.prepare, warm_up=self.warm_up, libraries=self.libraries, threads=self.threads, **arguments
        )

    @property
    def environment(self) -> dict[str, str]:
        """What the command's process is started with."""
        return glibc.environment(self.threads) | (glibc.tunables(huge_pages=True) if self.huge_pages else {})


def run(grid: Grid, file: Path, *, seed: int, quick: bool) -> list[dict[str, Any]]:
    """Predict and measure what ``file`` does not yet have for this commit and seed; returns all lines of both."""
    os.environ.update(grid.environment)  # a probe's child inherits what the command's child is started with
    key = {"commit": current_commit(), "seed": seed}
    lines = [line for line in read(file) if line["commit"] == key["commit"] and line["seed"] in (seed, None)]
    done = {line["name"] for line in lines}
    file.parent.mkdir(parents=True, exist_ok=True)
    ahead = [each for each in grid.ordered(seed, quick=quick) if each.name not in done]
    with tempfile.TemporaryDirectory() as empty:  # every plan is a new one; only operators' costs are remembered
        costs = CostStore(Path(empty))
        for start in range(0, len(ahead), AT_ONCE):
            some = ahead[start : start + AT_ONCE]
            known = costs.known([grid.base, *map(grid.traced, some)], ceiling=None)
            for each in some:
                line = compare(each, grid, known) | key | {"seed": seed if each.drawn else None}
                lines.append(line)
                with file.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
                log.info("%4d  %+6.2f %%  %s", len(lines), 100 * line["error"], each.name)
    return lines


def read(file: Path) -> list[dict[str, Any]]:
    """Lines written so far."""
    with suppress(OSError):
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return []


def compare(each: Configuration, grid: Grid, known: Costs) -> dict[str, Any]:
    """One line: bytes above the floor predicted and measured, and of the whole process."""
    priced = known[grid.traced(each)]
    terms = {name: int(priced[name]) for name in TERMS}
    began = time.monotonic()
    measured = _measured(each, grid)
    predicted, found = sum(terms.values()), measured["peak"] - measured["floor"]
    return {
        "name": each.name,
        "labels": dict(each.labels),
        "drawn": each.drawn,
        "predicted": predicted,
        "measured": found,
        "error": round(predicted / found - 1, 5),
        "whole_error": round((predicted + int(known[grid.base]["bytes"])) / measured["peak"] - 1, 5),
        "terms": terms,
        "floor": measured["floor"],
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
    """Warm up, make the step, run it; called in a process of its own.

    Returns
    -------
    dict
        ``floor``, resident bytes before anything was made; ``steps``, the peak of each step above it, making the
        objects counted with the first; ``peak``, the largest.
    """
    module, name = prepare.split(":")
    function = getattr(importlib.import_module(module), name)
    glibc.tame()
    resolve(warm_up)()
    glibc.trim()
    base, peaks = resident(), []
    reset_peak()
    *_kept, step = function(**json.loads(arguments))
    for _ in range(STEPS):
        step()
        peaks.append(lifetime_peak())
        reset_peak()
    return {"floor": base, "peak": max(peaks), "steps": [peak - base for peak in peaks]}


def summary(lines: Iterable[Mapping[str, Any]], *, least: int = LEAST_BYTES) -> dict[str, Any]:
    """The issue's numbers, of the runs that are large enough to be judged."""
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
    """The smallest value that at least ``share`` of them do not exceed."""
    return ordered[max(0, -(-int(1000 * share) * len(ordered) // 1000) - 1)]


def families(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """A table: for each value of each axis with a few runs, errors in per cent, and how many runs were under."""
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
    """Run an application's grid; the last line on stdout is the summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="of the drawn configurations (default: as begun, or from the clock)")
    parser.add_argument("--quick", action="store_true", help="the first 25 configurations")
    parser.add_argument("--file", type=Path, help="where lines are kept")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("peakline").setLevel(logging.INFO)
    what = grid()
    file = args.file or Path(f"bench/prediction-{what.name}.jsonl")
    begun = [line["seed"] for line in read(file) if line["commit"] == current_commit() and line["seed"] is not None]
    seed = args.seed if args.seed is not None else begun[-1] if begun else int(time.time())
    log.info("seed %d", seed)
    lines = run(what, file, seed=seed, quick=args.quick)
    sys.stderr.write("\n".join(families(lines)) + "\n")
    sys.stdout.write(json.dumps({"seed": seed, **summary(lines)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(measure(*sys.argv[1:])) + "\n")
