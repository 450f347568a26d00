"""``imaging compress``'s options, and the job they describe."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.commands.arguments import MODEL_HELP
from apps.imaging.planning import baselines
from common.cli import main
from common.cli.session import CommandSession
from common.errors import BadInput, UsageError
from common.memory.process.budget import MemoryBudget
from common.model_folder import model_path

if TYPE_CHECKING:
    from common.memory.plan.planner import Workload


def add(commands: Any) -> None:
    """Declare the subcommand."""
    about = "Make a model's network smaller and faster; imaging evaluate says what that costs."
    one = commands.add_parser("compress", help="8-bit integers", description=about)
    one.add_argument("model", type=model_path, metavar="MODEL", help=MODEL_HELP)
    one.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL2", help="model folder to write")
    one.add_argument("--int8", action="store_true", required=True, help="convolutions in 8-bit integers, for OpenVINO")
    one.add_argument(
        "--calibration", type=Path, required=True, metavar="DIR", help="volumes like those that will be segmented"
    )
    one.add_argument("--tiles", type=main.positive, default=32, metavar="N", help="of all volumes (default 32)")
    main.add_common_options(one)
    record = lambda args: args.output / "run.json"  # noqa: E731
    command = main.Command(
        "imaging compress",
        main.options,
        _workload,
        lambda args: baselines.COMPRESS,
        _run,
        record,
        huge_pages=True,
        alone=True,
    )
    one.set_defaults(command=command)


def _workload(args: argparse.Namespace, budget: MemoryBudget) -> "Workload":
    """Read the volumes' headers; those beyond the number of tiles are not needed."""
    from apps.imaging.importers.convert import converted_model
    from apps.imaging.inference.network_grid import NetworkGrid
    from apps.imaging.inference.quantization import OVERLAP, Job
    from apps.imaging.inference.studies import find_studies, open_volume
    from apps.imaging.models.model_folder import read_model
    from apps.imaging.planning.compress import CompressWorkload

    model = read_model(converted_model(args.model, budget))
    if args.output.resolve() in (args.model.resolve(), model.directory.resolve()):
        raise UsageError(f"-o {args.output}: is the model itself")
    if len(model.channels) != 1:
        raise BadInput(f"{args.model}: a model of {len(model.channels)} channels; one image a study is read")
    images = args.calibration / "imagesTr"
    studies = find_studies([images if images.is_dir() else args.calibration])
    step = -(-len(studies) // args.tiles)
    cases = []
    for path in (Path(study.input) for study in studies[::step]):
        cases.append(NetworkGrid.of(open_volume(path), model, tile=model.patch, overlap=OVERLAP))
        cases[-1].check(path)
    return CompressWorkload(Job(model, tuple(cases), args.output, args.tiles), args.threads)


def _run(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    from apps.imaging.inference.quantization import run
    from apps.imaging.planning.compress import CompressWorkload

    work = session.workload
    assert isinstance(work, CompressWorkload)
    return run(work.job, session)
