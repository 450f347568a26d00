"""The promise over a grid: every command at every ceiling, inside a cgroup of that size.

An application's ``bench/promise.py`` calls ``add_command`` for each of its commands. Each then runs at every ceiling:
the peak stays within it, nothing is killed, from 1 GiB on nothing is refused, and the prediction is within 5 % of what
was measured. ``python -m common.bench.promise APP ARGUMENTS...`` is the case that judges a command's refusals: the
smallest ceiling that the refusal names must run, and be near the true minimum.
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
"""0.4 GiB is 410 MiB. From the largest down: what is measured for one serves the next."""
NEVER_REFUSED = GIB
"""From this ceiling on every command of the grid must run."""
WITHIN_5_PERCENT = Bound("predicted_over_measured", 0.95, 1.05)
NEAR_THE_MINIMUM = Bound("result.smallest_over_minimum", at_most=1.05)
IT_RUNS = Bound("result.runs", 1, 1)

IMPOSSIBLE = 32 * MIB
"""A ceiling that every command refuses, and so names the smallest that would do."""
RESOLUTION = 0.01
"""The bisection ends when its interval is this share of the ceiling."""
LOWEST_SHARE = 0.8
"""Of the smallest ceiling named; where a command runs even under this, the bisection goes no further down."""
FIRST_TRIES = (1.005, 0.985)
"""Where the bisection looks first, by the peak measured at the ceiling named: most often the minimum lies between."""


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
    """A case's name."""
    return f"{name}@{ceiling / GIB:.2g}GiB"


def exits(ceiling: int) -> tuple[int, ...]:
    """How a command may end at a ceiling."""
    return (EXIT_OK,) if ceiling >= NEVER_REFUSED else (EXIT_OK, EXIT_DOES_NOT_FIT)


def smallest(argv: Sequence[str], fresh: Path | None) -> dict[str, Any]:
    """The ceiling that a refusal names, whether it runs, and the true minimum by bisection."""
    refused = _run("refusal", ["-m", *argv], IMPOSSIBLE, None, fresh)
    named = int(refused["smallest"])
    ran = _run("named", ["-m", *argv], named, named, fresh)
    fails, works = int(LOWEST_SHARE * named), named
    tries = [int(share * ran["peak"]) for share in FIRST_TRIES]
    while works - fails > RESOLUTION * named:
        middle = tries.pop(0) if tries else (fails + works) // 2
        if not fails < middle < works:
            continue
        done = _run("forced", ["-m", "common.bench.forced_failures", *argv], middle, middle, fresh)
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
    """``[FRESH|-] APP ARGUMENTS...``: write the result as JSON."""
    fresh = None if argv[0] == "-" else Path(argv[0])
    sys.stdout.write(json.dumps(smallest(argv[1:], fresh)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
