"""The smallest command that makes the promise: fill blocks of memory under a ceiling.

It has every part of a real one (workload, plan, warm-up, wall, record), so the contract is tested on it first:
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
from common.memory.costs import floor
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting
from common.memory.process.budget import BudgetError, MemoryBudget, parse_size

WARM_UP = "common.bench.demo_allocation:warm_up"


def warm_up() -> None:
    """NumPy is all this command needs."""
    import numpy as np

    np.zeros(1).sum()


@dataclass(frozen=True, slots=True)
class FillWorkload:
    """Write ``size`` bytes in ``blocks`` equal parts, one after the other."""

    size: int
    threads: int = 1
    name: str = "bench fill"

    def settings(self) -> Iterator[Setting]:
        """More blocks need less memory and take longer."""
        for blocks in (1, 2, 4, 8):
            yield {"blocks": blocks}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """Only the floor."""
        return [floor.probe(WARM_UP, libraries=("numpy",), threads=self.threads)]

    def footprint(self, setting: Setting, known: Costs) -> Footprint:
        """The floor and one block."""
        block = Term("block", -(-self.size // int(setting["blocks"])), "analytic", ("fill",))
        return Footprint.of([*floor.terms(known, self.probes(setting)[0]), block])

    def seconds(self, setting: Setting, known: Costs) -> float:
        """One unit a block."""
        return float(setting["blocks"])


def _workload(args: argparse.Namespace, budget: MemoryBudget) -> FillWorkload:
    try:
        return FillWorkload(parse_size(args.bytes), args.threads)
    except BudgetError as error:
        raise UsageError(f"--bytes: {error}") from None


def _execute(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    args = session.request
    import numpy as np

    workload = session.workload
    assert isinstance(workload, FillWorkload)
    total, blocks = 0, int(session.plan["blocks"])
    # --hostile breaks the plan on purpose, to show which wall answers.
    size = -(-workload.size // blocks) * (8 if args.hostile else 1)
    with session.phase("fill"):
        for _ in range(blocks):
            total += int(np.ones(size, np.uint8).sum(dtype=np.int64))
    return {"written": total}


def parser() -> argparse.ArgumentParser:
    """The command line of this module."""
    top = argparse.ArgumentParser(prog="python -m common.bench.demo_allocation", description=__doc__)
    top.add_argument("--bytes", default="200MiB", help="how much to write in all")
    top.add_argument("--hostile", action="store_true", help="allocate eight times what was planned")
    top.add_argument("--output", type=Path, help="where the record goes")
    main.add_common_options(top)
    top.set_defaults(
        command=main.Command(
            "bench fill", main.options, _workload, lambda args: WARM_UP, _execute, lambda args: args.output
        )
    )
    return top


if __name__ == "__main__":
    sys.exit(main.main(parser(), "common.bench.demo_allocation"))
