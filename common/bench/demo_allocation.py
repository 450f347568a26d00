"""The smallest command under a ceiling: it fills blocks of memory.

It has every part of a real command (workload, plan, warm-up, wall, record), and the tests use it for that:
``python -m common.bench.demo_allocation --bytes 200MiB --memory 400MiB``.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.cli import main
from common.cli.session import CommandSession
from common.errors import UsageError
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting
from common.memory.process.budget import MIB, BudgetError, MemoryBudget, parse_size

WARM_UP = "common.bench.demo_allocation:warm_up"
PLANNING_BYTES = 2 * MIB
"""What planning and a second import of this module leave, which the baseline's child has not (measured 1.7 MiB). In the
applications the warm-up is larger than that."""


def warm_up() -> None:
    """Load NumPy and what a command line loads, and allocate once."""
    import numpy as np

    parser()
    np.zeros(1).sum()


@dataclass(frozen=True, slots=True)
class FillWorkload:
    """Write ``size`` bytes in ``blocks`` equal parts, one after the other."""

    size: int
    threads: int = 1
    name: str = "bench demo-allocation"

    def settings(self) -> Iterator[Setting]:
        """Yield block counts; more blocks need less memory and take longer."""
        for blocks in (1, 2, 4, 8):
            yield {"blocks": blocks}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """Return the probe of the baseline."""
        return [baseline.probe(WARM_UP, libraries=("numpy",), threads=self.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Return the baseline and one block."""
        block = Term("block", -(-self.size // int(setting["blocks"])), "analytic", ("fill",))
        planning = Term("planning", PLANNING_BYTES, "measured")
        return Footprint.of([*baseline.terms(costs, self.probes(setting)[0]), planning, block])

    def seconds(self, setting: Setting) -> float:
        """Return one unit per block."""
        return float(setting["blocks"])


def _workload(args: argparse.Namespace, budget: MemoryBudget) -> FillWorkload:
    try:
        return FillWorkload(parse_size(args.bytes), args.threads)
    except BudgetError as error:
        raise UsageError(f"--bytes: {error}") from None


def _execute(session: CommandSession[argparse.Namespace, FillWorkload]) -> Mapping[str, Any]:
    import numpy as np

    total, blocks = 0, int(session.plan["blocks"])
    # --hostile breaks the plan on purpose, to show which limit stops it.
    size = int(-(-session.workload.size // blocks) * session.request.hostile)
    with session.phase("fill"):
        if session.request.map is not None:  # the walls count private memory, and what this command read first
            mapped = np.memmap(session.request.map, np.uint8, "r")
            total += int(mapped.max())
        for _ in range(blocks):
            total += int(np.ones(size, np.uint8).sum(dtype=np.int64))
    return {"written": total}


def parser() -> argparse.ArgumentParser:
    """Return this module's command line."""
    top = argparse.ArgumentParser(prog="python -m common.bench.demo_allocation", description=__doc__)
    top.add_argument("--bytes", default="200MiB", help="how much to write in all")
    hostile = "allocate N times (8) what was planned"
    top.add_argument("--hostile", nargs="?", type=float, const=8, default=1, metavar="N", help=hostile)
    top.add_argument("--map", type=Path, metavar="FILE", help="also map FILE and read it, which was not planned")
    top.add_argument("--output", type=Path, help="where the record goes")
    main.add_common_options(top)
    top.set_defaults(
        command=main.Command(
            "bench demo-allocation", main.options, _workload, lambda args: WARM_UP, _execute, lambda args: args.output
        )
    )
    return top


if __name__ == "__main__":
    sys.exit(main.main(parser(), "common.bench.demo_allocation"))
