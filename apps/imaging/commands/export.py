"""``imaging export``: its options, and which functions plan and run it."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.commands.arguments import MODEL_HELP
from apps.imaging.exporters.options import FORMS, PRECISIONS, ExportRequest
from apps.imaging.planning import baselines
from common.cli import main
from common.cli.session import CommandSession
from common.errors import UsageError
from common.extras import require
from common.files import no_room
from common.memory.process.budget import MemoryBudget
from common.model_folder import MANIFEST, model_path

if TYPE_CHECKING:
    from apps.imaging.planning.export import ExportWorkload

DESCRIPTION = """Write a model for other programs: one ONNX file, network and description, or a MONAI bundle that
``python -m monai.bundle run`` takes."""


def add(commands: Any) -> None:
    """Declare the subcommand."""
    one = commands.add_parser("export", help="write a model for other programs", description=DESCRIPTION)
    one.add_argument("model", type=model_path, metavar="MODEL", help=MODEL_HELP)
    one.add_argument("--as", dest="form", choices=FORMS, required=True, help="the form; nnunet says why it is not one")
    one.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="NAME.onnx, or the bundle's folder"
    )
    precision_help = "of the ONNX file: int8 (QuantizeLinear and DequantizeLinear; the default if the model has it)"
    one.add_argument("--precision", choices=PRECISIONS, help=precision_help)
    main.add_common_options(one)
    command = main.Command(
        "imaging export",
        _options,
        _workload,
        lambda request: baselines.EXPORT[request.form],
        _run,
    )
    one.set_defaults(command=command)


def _options(args: argparse.Namespace) -> ExportRequest:
    return ExportRequest(
        model=args.model, output=args.output, form=args.form, threads=args.threads, precision=args.precision
    )


def _workload(request: ExportRequest, budget: MemoryBudget) -> "ExportWorkload":
    from apps.imaging.exporters.monai_bundle import check_exportable
    from apps.imaging.importers.convert import converted_model
    from apps.imaging.models.model_folder import read_model
    from apps.imaging.planning.export import ExportWorkload

    directory = request.model
    if not (directory / MANIFEST).is_file():
        directory = converted_model(directory, budget)
    model = read_model(directory)
    if request.form == "bundle":
        check_exportable(model, request.model)
    if request.precision == "int8" and not model.int8:
        raise UsageError(f"--precision int8: {request.model} is not quantised; imaging compress --int8 makes one")
    workload = ExportWorkload(request, model)
    if workload.precision == "int8":
        require("engines", "openvino", purpose="--precision int8")
    return workload


def _run(session: "CommandSession[ExportRequest, ExportWorkload]") -> Mapping[str, Any]:
    from apps.imaging.exporters.monai_bundle import write_bundle
    from apps.imaging.exporters.onnx_file import write_onnx
    from apps.imaging.planning.export import EXPORT

    request, model = session.request, session.workload.model
    try:
        with session.phase(EXPORT):
            if request.form == "bundle":
                write_bundle(model, request.output)
            else:
                write_onnx(model, request.output, session.workload.precision)
    except OSError as error:
        if no_room(error):
            raise
        raise UsageError(f"-o {request.output}: {error.strerror}") from None
    labels = ", ".join(f"{label.value} {label.name}" for label in model.labels)
    session.say(f"{request.output}: {model.network}, {session.workload.precision}; {labels}")
    return {"form": request.form, "labels": len(model.labels)}
