"""``imaging evaluate``: its options, and which functions plan and run it."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.commands.arguments import repairs
from apps.imaging.evaluation.request import EvaluateOptions, EvaluateRequest
from apps.imaging.planning import baselines
from common.cli import main
from common.cli.session import CommandSession
from common.memory.process.budget import MemoryBudget

if TYPE_CHECKING:
    from apps.imaging.planning.evaluate import EvaluateWorkload

HEADER_HELP = "of NIfTI headers that contradict themselves, take the part that agrees with pixdim"


def add(commands: Any) -> None:
    """Declare the subcommand."""
    about = "Dice, HD95, surface Dice at 1 mm and volume error, per class and case."
    one = commands.add_parser("evaluate", help="compare with references", description=about)
    one.add_argument("predictions", type=Path, help="label file, or folder (an output of imaging infer)")
    one.add_argument("references", type=Path, help="label file, or folder with files of the same names")
    one.add_argument("--repair", type=repairs, default=frozenset(), metavar="header", help=HEADER_HELP)
    main.add_common_options(one)
    command = main.Command(
        "imaging evaluate",
        _options,
        _workload,
        lambda options: baselines.EVALUATE,
        _run,
        lambda options: options.record,
        huge_pages=True,
    )
    one.set_defaults(command=command)


def _options(args: argparse.Namespace) -> EvaluateOptions:
    return EvaluateOptions(
        predictions=args.predictions,
        references=args.references,
        repair=args.repair,
        threads=args.threads,
        print_table=not args.json,
    )


def _workload(options: EvaluateOptions, budget: MemoryBudget) -> "EvaluateWorkload":
    from apps.imaging.planning.evaluate import EvaluateWorkload

    return EvaluateWorkload(EvaluateRequest.of(options))


def _run(session: "CommandSession[EvaluateOptions, EvaluateWorkload]") -> Mapping[str, Any]:
    from apps.imaging.evaluation.metrics import evaluate, table

    request = session.workload.request
    with session.phase("evaluate"), session.progress(total=len(request.pairs), unit="case", label="evaluate") as bar:
        results = evaluate(request.pairs, request.scans, bar.update)
    if request.options.print_table:
        sys.stdout.write(table(results) + "\n")
    return results
