"""``imaging infer``: its options, and which functions plan and run it."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.commands.arguments import (
    CHANNEL_HELP,
    ENGINES,
    INPUT_HELP,
    MODEL_HELP,
    OUTPUT_HELP,
    REPAIR_HELP,
    SERIES_HELP,
    TASKS,
    VOLUME_HELP,
    channel,
    checkpoint,
    folds,
    millilitres,
    millimetres,
    names,
    output_types,
    percent,
    repairs,
    share,
    source,
)
from apps.imaging.inference.options import InferOptions, choose_engine
from apps.imaging.planning import baselines
from common.cli import job_scripts, main
from common.cli.session import CommandSession
from common.errors import DoesNotFit, UsageError
from common.memory.process.budget import MemoryBudget
from common.model_folder import MANIFEST, model_path

if TYPE_CHECKING:
    from apps.imaging.inference.running.merged_request import Source
    from apps.imaging.planning.infer import InferWorkload
    from apps.imaging.planning.merged import MergedWorkload


def add(commands: Any) -> None:
    """Declare the subcommand."""
    one = commands.add_parser("infer", help="segment studies", description="Segment NIfTI files and DICOM series.")
    one.add_argument("input", nargs="+", type=source, help=INPUT_HELP)
    one.add_argument("-m", "--model", type=model_path, required=True, action="append", help=MODEL_HELP)
    labels_help = "label map of the models: which class of which -m becomes which label (JSON)"
    one.add_argument("--labels", type=Path, metavar="MAP", help=labels_help)
    task_help = "take all networks of a task from the folder of results that -m names; with --fast its network for 3 mm"
    one.add_argument("--task", default="", choices=TASKS, help=task_help)
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
    one.add_argument("--channel", type=channel, action="append", default=[], metavar="NAME=SERIES", help=CHANNEL_HELP)
    one.add_argument("--volume", type=main.positive, metavar="K", help=VOLUME_HELP)
    one.add_argument("--repair", type=repairs, default=frozenset(), metavar="WHAT", help=REPAIR_HELP)
    suv_help = (
        "standardised uptake values by body weight instead of a PET series' Bq/ml, for the model and the statistics"
    )
    one.add_argument("--suv", action="store_true", help=suv_help)
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
    one.add_argument(
        "--probabilities",
        nargs="?",
        const="uint8",
        choices=["uint8", "uint16"],
        help="also a NIfTI file with the probability of each class, in steps of 1/255 (default uint8) or 1/65535",
    )
    one.add_argument("--statistics", action="store_true", help="also volume and intensity of each class, CSV and JSON")
    one.add_argument("--preview", action="store_true", help="also a picture of each study (--report has both)")
    small_help = "remove connected components of less than this volume"
    one.add_argument("--remove-small", type=millilitres, default=0.0, metavar="ML", help=small_help)
    one.add_argument(
        "--fast", action="store_true", help="segment at half the model's resolution; labels are on the image's grid"
    )
    crop_help = "look only where a coarse pass, at a third of the model's resolution, finds something; else everywhere"
    one.add_argument("--crop-first", action="store_true", help=crop_help)
    one.add_argument("--crop-model", type=model_path, metavar="M", help="model of the coarse pass (default: the same)")
    margin_help = "millimetres around what the coarse pass finds (default 20)"
    one.add_argument("--crop-margin", type=millimetres, metavar="MM", help=margin_help)
    stow_help = "also send the DICOM objects to this DICOMweb server (https://HOST/dicom-web)"
    one.add_argument("--stow", default="", metavar="URL", help=stow_help)
    loss_help = (
        "where the model does not fit, take a variant that imaging compress --measure found to lose no more of its mean"
        " Dice (0.5%%), and not to be slower (default 0: none)"
    )
    one.add_argument("--allow-quality-loss", type=percent, default=0.0, metavar="PCT", help=loss_help)
    variants_help = "where the model's variants are (default: the folder variants in its folder)"
    one.add_argument("--variants", type=Path, metavar="DIR", help=variants_help)
    job_scripts.add_options(one, "OUT/part-K-of-N")
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
    job_scripts.check(args.format, dry_run=args.dry_run, as_json=args.json)
    part = None if args.format else args.part  # a job asks for what the largest of all studies needs
    return InferOptions(
        inputs=tuple(args.input),
        model=args.model[0],
        further_models=tuple(args.model[1:]),
        labels=args.labels,
        task=args.task,
        output=part.folder(args.output) if part else args.output,
        part=part,
        output_types=args.output_type,
        seg_type=args.seg_type,
        preview=args.preview or args.report,
        statistics=args.statistics or args.report,
        stow=args.stow,
        roi_subset=None if args.roi_subset is None else tuple(args.roi_subset),
        split_classes=args.split_classes,
        probabilities=args.probabilities,
        remove_small=args.remove_small,
        series=args.series,
        channels=tuple(args.channel),
        volume=args.volume,
        repair=args.repair,
        suv=args.suv,
        fast=args.fast,
        crop_first=args.crop_first or args.crop_model is not None or args.crop_margin is not None,
        crop_model=args.crop_model,
        crop_margin=20.0 if args.crop_margin is None else args.crop_margin,
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
        quality_loss=args.allow_quality_loss,
        variants=args.variants,
    )


def _workload(options: InferOptions, budget: MemoryBudget) -> "InferWorkload | MergedWorkload":
    from apps.imaging.importers.nnunet import previous_stage
    from apps.imaging.importers.nnunet_results import task_models
    from apps.imaging.inference.request import InferRequest
    from apps.imaging.models.label_map import read_entries, shipped_map
    from apps.imaging.planning.variants import ReplaceableWorkload

    single = (options.model / MANIFEST).is_file() or previous_stage(options.model) is None
    if single and not (options.task or options.labels or options.crop_first):
        request = InferRequest.of(options, _folder(options.model, options, budget))
        return ReplaceableWorkload(request, folder=options.variants)
    if options.quality_loss:
        raise UsageError("--allow-quality-loss: variants take the place of one network, not of a cascade")
    from apps.imaging.inference.running.merged_request import MergedRequest
    from apps.imaging.planning.merged import MergedWorkload

    label_map, names = options.labels, [options.model, *options.further_models]
    if options.task:  # whose coarse network is one of its own
        label_map = shipped_map(f"{options.task}-fast" if options.fast else options.task)
        datasets = dict.fromkeys(str(entry["from"]["model"]) for entry in read_entries(label_map))
        names = task_models(options.model, list(datasets))
        options = replace(options, fast=False)
    models = _sources([*names, *([options.crop_model] if options.crop_model else [])], options, budget)
    crop = models.pop() if options.crop_model else None
    return MergedWorkload(MergedRequest.of(options, models, label_map, turned=bool(options.task), crop=crop))


def _sources(names: Sequence[Path], options: InferOptions, budget: MemoryBudget) -> "list[Source]":
    """The models of several paths, and the first stages of cascades among them.

    Raises
    ------
    DoesNotFit
        If some cannot be converted under the ceiling, with one that is enough for all.
    """
    from apps.imaging.importers.nnunet import previous_stage
    from apps.imaging.inference.running.merged_request import Source

    folders: dict[Path, Path] = {}
    refused = []
    stages = {name: previous_stage(name) for name in names}
    for name in (*names, *(stage for stage in stages.values() if stage)):
        try:
            folders[name] = _folder(name, options, budget)
        except DoesNotFit as refusal:
            refused.append(refusal)
    if refused:
        raise max(refused, key=lambda refusal: refusal.smallest_feasible_bytes or 0)
    firsts = {name: Source(stage, folders[stage]) for name, stage in stages.items() if stage}
    return [Source(name, folders[name], firsts.get(name)) for name in names]


def _folder(name: Path, options: InferOptions, budget: MemoryBudget) -> Path:
    """The model folder of a path, converted if need be."""
    from apps.imaging.importers.convert import converted_model
    from apps.imaging.importers.nnunet import Weights

    weights = Weights.of(options.folds, options.checkpoint)
    if (name / MANIFEST).is_file() and weights == Weights():
        return name
    return converted_model(name, budget, weights)


def _run(session: "CommandSession[InferOptions, InferWorkload | MergedWorkload]") -> Mapping[str, Any]:
    from apps.imaging.inference import pipeline
    from apps.imaging.inference.request import InferRequest
    from apps.imaging.inference.running import several
    from apps.imaging.inference.running.parts import PartNote

    request = session.workload.request
    if session.plan.note:
        session.say(session.plan.note)
    if part := request.options.part:
        PartNote.of_request(request, part, request.inputs.found).write(request.options.output)
        if not request.inputs.studies:
            session.say(f"part {part.number} of {part.of} has none of the studies")
            return {"studies": []}
    return pipeline.run(request, session) if isinstance(request, InferRequest) else several.run(request, session)


def _sections(record: Mapping[str, Any], directory: Path) -> Iterable[str]:
    from apps.imaging.inference.report import studies

    return studies(record, directory)
