"""``imaging evaluate``: its options, the work they ask for, and its run."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.planning import baselines
from common.cli import main
from common.cli.session import CommandSession
from common.memory.process.budget import MemoryBudget

if TYPE_CHECKING:
    from common.memory.plan.planner import Workload


def add(commands: Any) -> None:
    """Declare the subcommand."""
    about = "Dice, HD95, surface Dice at 1 mm and volume error, per class and case."
    one = commands.add_parser("evaluate", help="compare with references", description=about)
    one.add_argument("predictions", type=Path, help="label file, or folder (an output of imaging infer)")
    one.add_argument("references", type=Path, help="label file, or folder with files of the same names")
    main.add_common_options(one)
    floor = lambda args: baselines.EVALUATE  # noqa: E731
    command = main.Command("imaging evaluate", main.options, _workload, floor, _run, _record, huge_pages=True)
    one.set_defaults(command=command)


def _record(args: argparse.Namespace) -> Path:
    """Beside what is evaluated."""
    beside: Path = args.predictions if args.predictions.is_dir() else args.predictions.parent
    return beside / "evaluation.json"


def _workload(args: argparse.Namespace, budget: MemoryBudget) -> "Workload":
    from apps.imaging.evaluation.metrics import find_pairs, scan
    from apps.imaging.planning.evaluate import EvaluateWorkload

    pairs = find_pairs(args.predictions, args.references)
    return EvaluateWorkload(pairs, [scan(pair) for pair in pairs], args.threads)


def _run(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    args = session.request
    from apps.imaging.evaluation.metrics import evaluate, table
    from apps.imaging.planning.evaluate import EvaluateWorkload

    work = session.workload
    assert isinstance(work, EvaluateWorkload)
    with session.phase("evaluate"), session.progress(total=len(work.pairs), unit="case", label="evaluate") as bar:
        results = evaluate(work.pairs, work.scans, bar.update)
    if not args.json:
        sys.stdout.write(table(results) + "\n")
    return results
