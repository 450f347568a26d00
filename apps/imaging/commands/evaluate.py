"""``imaging evaluate``: its options, and which functions plan and run it."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.commands.arguments import millimetres, repairs
from apps.imaging.evaluation.request import EvaluateOptions, EvaluateRequest
from apps.imaging.planning import baselines
from common.cli import main
from common.cli.session import CommandSession
from common.memory.process.budget import MemoryBudget
from common.model_folder import MANIFEST, model_path

if TYPE_CHECKING:
    from apps.imaging.planning.evaluate import EvaluateWorkload

NAMES_HELP = (
    "model or label map (JSON) with the names of the classes; files CASE-NAME.nii.gz and CASE/NAME.nii.gz are then read"
    " as classes"
)
HEADER_HELP = "of NIfTI headers that contradict themselves, take the part that agrees with pixdim"


def add(commands: Any) -> None:
    """Declare the subcommand."""
    about = "Dice, HD95, surface Dice, volume error and missed structures, per class and case."
    one = commands.add_parser("evaluate", help="compare with references", description=about)
    one.add_argument("predictions", type=Path, help="label file, or folder (an output of imaging infer)")
    one.add_argument("references", type=Path, help="label file, or folder with files of the same names")
    one.add_argument("-m", "--model", type=model_path, metavar="MODEL", help=NAMES_HELP)
    tolerance_help = "millimetres within which two surfaces agree, for surface Dice (default 1)"
    one.add_argument("--tolerance", type=millimetres, default=1.0, metavar="MM", help=tolerance_help)
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
        model=args.model,
        tolerance=args.tolerance,
        threads=args.threads,
        print_table=not args.json,
    )


def _workload(options: EvaluateOptions, budget: MemoryBudget) -> "EvaluateWorkload":
    from apps.imaging.planning.evaluate import EvaluateWorkload

    return EvaluateWorkload(EvaluateRequest.of(options, _names(options.model) if options.model else {}))


def _names(path: Path) -> dict[int, str]:
    """Names of the classes of a model or a label map, by value. Nothing is converted.

    Raises
    ------
    BadInput
        If it is neither.
    """
    from apps.imaging.importers import monai_bundle, nnunet
    from apps.imaging.models.label_map import read_entries
    from apps.imaging.models.model_folder import read_manifest

    if path.suffix == ".json":
        return {entry["value"]: entry["name"] for entry in read_entries(path)}
    if nnunet.is_nnunet(path):
        return {value: name for name, value in nnunet.read_plan(path).labels.items()}
    if not (path / MANIFEST).is_file() and monai_bundle.is_bundle(path):
        plan = monai_bundle.read_plan(path)
        return dict(zip(plan.values, plan.labels, strict=True))
    return {label["value"]: label["name"] for label in read_manifest(path)["labels"]}


def _run(session: "CommandSession[EvaluateOptions, EvaluateWorkload]") -> Mapping[str, Any]:
    from apps.imaging.evaluation.metrics import evaluate, table

    request = session.workload.request
    with session.phase("evaluate"), session.progress(total=len(request.pairs), unit="case", label="evaluate") as bar:
        results = evaluate(
            request.pairs, request.scans, bar.update, tolerance=request.options.tolerance, names=request.names
        )
    if request.options.print_table:
        sys.stdout.write(table(results) + "\n")
    return results
