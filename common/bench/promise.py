"""Check the promise over a grid: every command at every ceiling, inside a cgroup of that size.

An application's ``bench/promise.py`` (``bench/promise/grid.py`` in imaging) calls ``add_command`` for each of its
commands. Each then runs at every ceiling: its peak has to stay within the ceiling, nothing may be killed, from 1 GiB on
nothing may be refused, and the prediction has to be within 5 % of the measured peak.
``python -m common.bench.promise FRESH|- APP ARGUMENTS...`` judges a command's refusals: the command has to run under
the smallest ceiling that its refusal names, and that ceiling has to be near the true minimum.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.bench.harness import Bound, Case, Suite, measure
from common.errors import EXIT_DOES_NOT_FIT, EXIT_OK
from common.memory.process.budget import GIB, MIB, format_size

CEILINGS = (4 * GIB, 2 * GIB, 1 * GIB, 768 * MIB, 512 * MIB, 410 * MIB, 256 * MIB)
"""410 MiB are 0.4 GiB. The largest comes first, because costs measured for one ceiling serve the next."""
NEVER_REFUSED = GIB
"""From this ceiling on every command of the grid must run."""
WITHIN_5_PERCENT = Bound("predicted_over_measured", 0.95, 1.05)
NEAR_THE_MINIMUM = Bound("result.smallest_over_minimum", at_most=1.05)
IT_RUNS = Bound("result.runs", 1, 1)

IMPOSSIBLE = 32 * MIB
"""A ceiling that every command refuses, naming the smallest sufficient one."""
RESOLUTION = 0.01
"""The bisection ends when its interval is this share of the ceiling."""
LOWEST_SHARE = 0.8
"""Share of the named ceiling at which the bisection stops even if the command still runs."""
FIRST_TRIES = (1.005, 0.985)
"""First ceilings of the bisection, as shares of the peak measured at the named ceiling; most minima lie between."""


def add_command(
    suite: Suite, name: str, argv: Sequence[object], *, ceilings: Sequence[int] = CEILINGS, fresh: Path | None = None
) -> None:
    """Declare a command's cases.

    Parameters
    ----------
    argv
        The application's module (``apps.recsys``) and its arguments, without ``--memory`` and ``--json``.
    fresh
        Its output, removed before each run.
    """
    for ceiling in ceilings:
        suite.case(
            at(name, ceiling),
            ["-m", *argv, "--memory", ceiling, "--json"],
            ceiling=ceiling,
            group=name,
            bounds=(WITHIN_5_PERCENT,),
            exits=exits(ceiling),
            fresh=fresh,
        )
    judge = ["-m", "common.bench.promise", fresh or "-", *argv]
    suite.case(f"{name}@smallest", judge, group=name, bounds=(IT_RUNS, NEAR_THE_MINIMUM))


def at(name: str, ceiling: int) -> str:
    """Return a case's name, ``"train@0.4GiB"``."""
    return f"{name}@{ceiling / GIB:.2g}GiB"


def exits(ceiling: int) -> tuple[int, ...]:
    """Return the exit codes that are right at a ceiling."""
    return (EXIT_OK,) if ceiling >= NEVER_REFUSED else (EXIT_OK, EXIT_DOES_NOT_FIT)


def smallest(argv: Sequence[str], fresh: Path | None) -> dict[str, Any]:
    """Bisect for the true minimum of a command's ceiling.

    Returns
    -------
    dict
        ``smallest``, the ceiling that a refusal names; ``runs``, 1 if the command runs under it; ``minimum``, found by
        bisection; ``smallest_over_minimum``; ``measured_at_smallest``, the peak. All in bytes.
    """
    refused = _run("refusal", ["-m", *argv], IMPOSSIBLE, None, fresh)
    named = int(refused["smallest"])
    ran = _run("named", ["-m", *argv], named, named, fresh)
    fails, works = int(LOWEST_SHARE * named), named
    tries = [int(share * ran["peak"]) for share in FIRST_TRIES]
    while works - fails > RESOLUTION * named:
        middle = tries.pop(0) if tries else (fails + works) // 2
        if not fails < middle < works:
            continue
        done = _run("forced", ["-m", "common.bench.forced.failures", *argv], middle, middle, fresh)
        if done["exit"] == EXIT_OK and done["peak"] <= middle:
            works = middle
        else:
            fails = middle
        sys.stderr.write(f"  {format_size(middle)}: exit {done['exit']}, peak {format_size(done['peak'])}\n")
    return {
        "smallest": named,
        "runs": int(ran["exit"] == EXIT_OK and ran["peak"] <= named and not ran["kills"]),
        "minimum": works,
        "smallest_over_minimum": round(named / works, 4),
        "measured_at_smallest": ran["peak"],
    }


def _run(name: str, argv: Sequence[str], ceiling: int, wall: int | None, fresh: Path | None) -> dict[str, Any]:
    command = (sys.executable, *argv, "--memory", str(ceiling), "--json")
    return measure(Case(name, command, wall, 1, name, (), (EXIT_OK,), fresh))


def main(argv: Sequence[str]) -> int:
    """Judge ``FRESH|- APP ARGUMENTS...`` and print the result as JSON."""
    fresh = None if argv[0] == "-" else Path(argv[0])
    sys.stdout.write(json.dumps(smallest(argv[1:], fresh)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
