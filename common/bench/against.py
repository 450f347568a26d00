"""Compare this checkout with another one: the same commands in both, in turn.

``python -m common.bench.against CHECKOUT SUITE [--only PATTERN] [--pairs 5]`` runs those cases of a suite (a module
like ``apps.recsys.bench.headline``) that are commands of the applications, here and in CHECKOUT in turn (made by ``git
worktree add``), and again. Each line says by how much the processor seconds of the whole process tree and its peak
differ: the median of the pairs' ratios, above 1 where this checkout takes more. Costs are measured in a first run of
each, which is not counted. Exit 1 if a ratio is above its bound.
"""

import argparse
import fnmatch
import importlib
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.bench.harness import Case, measure

MOST_SECONDS, MOST_BYTES = 1.05, 1.01
"""Ratios allowed to a change that should change neither."""
COMMANDS = ("-m apps.recsys ", "-m apps.imaging ")


def is_command(case: Case) -> bool:
    """Return True if a case runs one of the command lines, which both checkouts have under the same names."""
    return any(command in " ".join(case.argv) + " " for command in COMMANDS)


def located(case: Case, here: Path) -> Case:
    """Return the case with absolute paths of its files, so that it can run in another checkout."""
    argv = tuple(word.replace("bench/work", str(here / "bench" / "work")) for word in case.argv)
    return replace(case, argv=argv, fresh=None if case.fresh is None else here / case.fresh)


def compare(cases: Sequence[Case], other: Path, pairs: int) -> bool:
    """Run the cases in both checkouts in turn and print a line for each; returns True if all bounds hold."""
    here = Path.cwd()
    runs: dict[tuple[str, Path], list[dict[str, Any]]] = {}
    for turn in range(pairs + 1):
        for group in dict.fromkeys(case.group for case in cases):
            for checkout in (other, here) if turn % 2 else (here, other):
                for case in (case for case in cases if case.group == group):
                    line = measure(located(case, here), checkout)
                    if line["exit"] != 0:
                        raise SystemExit(f"{case.name} in {checkout}: exit {line['exit']}")
                    if turn:
                        runs.setdefault((case.name, checkout), []).append(line)
    holds = True
    for name in dict.fromkeys(case.name for case in cases):
        ratios = {}
        for metric, most in (("processor_seconds", MOST_SECONDS), ("peak", MOST_BYTES)):
            both = zip(runs[name, here], runs[name, other], strict=True)
            ratios[metric] = round(statistics.median(new[metric] / old[metric] for new, old in both), 4)
            holds &= ratios[metric] <= most
        sys.stdout.write(json.dumps({"name": name, "pairs": pairs} | ratios) + "\n")
        sys.stdout.flush()
    return holds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 if a ratio is above its bound."""
    parser = argparse.ArgumentParser(prog="against", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path, help="the other checkout")
    parser.add_argument("suite", help="module of a suite, such as apps.recsys.bench.headline")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cases by name; several with commas")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="runs in each checkout (default 5)")
    args = parser.parse_args(argv)
    cases = [case for case in importlib.import_module(args.suite).suite().cases if is_command(case)]
    patterns = args.only.split(",")
    chosen = [case for case in cases if any(fnmatch.fnmatch(case.name, pattern) for pattern in patterns)]
    return 0 if compare(chosen, args.checkout.resolve(), args.pairs) else 1


if __name__ == "__main__":
    sys.exit(main())
