"""``imaging compress``: its options, and which functions plan and run it."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.commands.arguments import MODEL_HELP
from apps.imaging.inference.options import CompressOptions
from apps.imaging.planning import baselines
from common.cli import main
from common.cli.session import CommandSession
from common.memory.process.budget import MemoryBudget
from common.model_folder import MANIFEST, model_path, shipped_note

if TYPE_CHECKING:
    from apps.imaging.planning.compress import CompressWorkload


def add(commands: Any) -> None:
    """Declare the subcommand."""
    about = "Make a model's network smaller and faster; imaging evaluate measures the loss."
    one = commands.add_parser("compress", help="quantise a model to 8-bit integers", description=about)
    one.add_argument("model", type=model_path, metavar="MODEL", help=MODEL_HELP)
    one.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL2", help="model folder to write")
    one.add_argument("--int8", action="store_true", required=True, help="convolutions in 8-bit integers, for OpenVINO")
    one.add_argument(
        "--calibration", type=Path, required=True, metavar="DIR", help="volumes like those that will be segmented"
    )
    one.add_argument(
        "--tiles", type=main.positive, default=32, metavar="N", help="tiles on which ranges are found (default 32)"
    )
    main.add_common_options(one)
    command = main.Command(
        "imaging compress",
        _options,
        _workload,
        lambda options: baselines.COMPRESS,
        _run,
        lambda options: options.output / "run.json",
        huge_pages=True,
        alone=True,
    )
    one.set_defaults(command=command)


def _options(args: argparse.Namespace) -> CompressOptions:
    return CompressOptions(
        model=args.model, output=args.output, calibration=args.calibration, tiles=args.tiles, threads=args.threads
    )


def _workload(options: CompressOptions, budget: MemoryBudget) -> "CompressWorkload":
    from apps.imaging.importers.convert import converted_model
    from apps.imaging.inference.quantization import CompressRequest
    from apps.imaging.planning.compress import CompressWorkload

    directory = options.model
    if not (directory / MANIFEST).is_file():
        directory = converted_model(directory, budget)
    return CompressWorkload(CompressRequest.of(options, directory))


def _run(session: "CommandSession[CompressOptions, CompressWorkload]") -> Mapping[str, Any]:
    from apps.imaging.inference.quantization import run

    request = session.workload.request
    if note := shipped_note(request.model.directory):
        session.say(note)
    return run(request, session)
