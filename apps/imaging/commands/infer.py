"""``imaging infer``: its options, and which functions plan and run it."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.commands.arguments import (
    ENGINES,
    INPUT_HELP,
    MODEL_HELP,
    OUTPUT_HELP,
    REPAIR_HELP,
    SERIES_HELP,
    VOLUME_HELP,
    checkpoint,
    folds,
    millilitres,
    names,
    output_types,
    repairs,
    share,
    source,
)
from apps.imaging.inference.options import InferOptions, choose_engine
from apps.imaging.planning import baselines
from common.cli import main
from common.cli.session import CommandSession
from common.memory.process.budget import MemoryBudget
from common.model_folder import MANIFEST, model_path

if TYPE_CHECKING:
    from apps.imaging.planning.infer import InferWorkload


def add(commands: Any) -> None:
    """Declare the subcommand."""
    one = commands.add_parser("infer", help="segment studies", description="Segment NIfTI files and DICOM series.")
    one.add_argument("input", nargs="+", type=source, help=INPUT_HELP)
    one.add_argument("-m", "--model", type=model_path, required=True, help=MODEL_HELP)
    one.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="output folder")
    one.add_argument("--output-type", type=output_types, default=("nifti",), metavar="TYPES", help=OUTPUT_HELP)
    seg_types = ["auto", "binary", "labelmap"]
    one.add_argument(
        "--seg-type",
        default="auto",
        choices=seg_types,
        help="type of DICOM SEG (default auto: labelmap if many classes)",
    )
    one.add_argument("--series", metavar="N|UID", help=SERIES_HELP)
    one.add_argument("--volume", type=main.positive, metavar="K", help=VOLUME_HELP)
    one.add_argument("--repair", type=repairs, default=frozenset(), metavar="WHAT", help=REPAIR_HELP)
    one.add_argument("--overlap", type=share, help="share of a tile that the next one covers (default: the model's)")
    one.add_argument("--tile", type=main.triple, metavar="X,Y,Z", help="tile in voxels (default: the model's patch)")
    one.add_argument(
        "--batch", type=main.positive, metavar="N", help="tiles at a time, which share the threads (default: planned)"
    )
    one.add_argument("--engine", default="auto", choices=["auto", *ENGINES], help="default auto: openvino, else torch")
    precision_help = "default: int8 if the model is quantised, else float32; bf16 needs OpenVINO and a CPU that has it"
    one.add_argument("--precision", choices=["float32", "bf16", "int8"], help=precision_help)
    folds_help = "folds of an nnU-Net model, 0,1 or all (default: every one that is there)"
    one.add_argument("--folds", type=folds, default=(), metavar="N,...", help=folds_help)
    checkpoint_help = "weights of an nnU-Net model: final (default), best, or the name of a file"
    one.add_argument("--checkpoint", type=checkpoint, metavar="NAME", help=checkpoint_help)
    tta_help = "mirror: average over each tile and its mirror images along the axes of training (slower)"
    one.add_argument("--tta", default="none", choices=["none", "mirror"], help=tta_help)
    one.add_argument("--roi-subset", type=names, metavar="NAME,...", help="only these classes (default: all)")
    split_help = "a NIfTI file of each class, CASE-NAME.nii.gz, instead of one with all labels"
    one.add_argument("--split-classes", action="store_true", help=split_help)
    one.add_argument("--statistics", action="store_true", help="also volume and intensity of each class, CSV and JSON")
    one.add_argument("--preview", action="store_true", help="also a picture of each study (--report has both)")
    small_help = "remove connected components of less than this volume"
    one.add_argument("--remove-small", type=millilitres, default=0.0, metavar="ML", help=small_help)
    one.add_argument(
        "--fast", action="store_true", help="segment at half the model's resolution; labels are on the image's grid"
    )
    stow_help = "also send the DICOM objects to this DICOMweb server (https://HOST/dicom-web)"
    one.add_argument("--stow", default="", metavar="URL", help=stow_help)
    main.add_device_options(one)
    main.add_common_options(one)
    command = main.Command(
        "imaging infer",
        _options,
        _workload,
        lambda options: baselines.INFER[choose_engine(options.engine, options.device)],
        _run,
        lambda options: options.output / "run.json",
        _sections,
        huge_pages=True,
        alone=True,
    )
    one.set_defaults(command=command)


def _options(args: argparse.Namespace) -> InferOptions:
    return InferOptions(
        inputs=tuple(args.input),
        model=args.model,
        output=args.output,
        output_types=args.output_type,
        seg_type=args.seg_type,
        preview=args.preview or args.report,
        statistics=args.statistics or args.report,
        stow=args.stow,
        roi_subset=None if args.roi_subset is None else tuple(args.roi_subset),
        split_classes=args.split_classes,
        remove_small=args.remove_small,
        series=args.series,
        volume=args.volume,
        repair=args.repair,
        fast=args.fast,
        tile=args.tile,
        overlap=args.overlap,
        batch=args.batch,
        engine=args.engine,
        precision=args.precision,
        mirror=args.tta == "mirror",
        folds=args.folds,
        checkpoint=args.checkpoint or "",
        device=args.device,
        threads=args.threads,
    )


def _workload(options: InferOptions, budget: MemoryBudget) -> "InferWorkload":
    from apps.imaging.importers.convert import converted_model
    from apps.imaging.importers.nnunet import Weights
    from apps.imaging.inference.request import InferRequest
    from apps.imaging.planning.infer import InferWorkload

    directory, weights = options.model, Weights.of(options.folds, options.checkpoint)
    if not (directory / MANIFEST).is_file() or weights != Weights():
        directory = converted_model(directory, budget, weights)
    return InferWorkload(InferRequest.of(options, directory))


def _run(session: "CommandSession[InferOptions, InferWorkload]") -> Mapping[str, Any]:
    from apps.imaging.inference.pipeline import run

    return run(session.workload.request, session)


def _sections(record: Mapping[str, Any], directory: Path) -> Iterable[str]:
    from apps.imaging.inference.report import studies

    return studies(record, directory)
