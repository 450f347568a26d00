"""``imaging infer``: its options, the work they ask for, and its run."""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.commands.arguments import (
    ENGINES,
    INPUT_HELP,
    MODEL_HELP,
    OUTPUT_HELP,
    REPAIR_HELP,
    SERIES_HELP,
    millilitres,
    names,
    output_types,
    repairs,
    share,
    source,
)
from common.cli import main
from common.cli.session import CommandSession
from common.errors import BadInput, UsageError
from common.memory.process.budget import MemoryBudget
from common.model_folder import model_path

if TYPE_CHECKING:
    from common.memory.plan.planner import Workload


def add(commands: Any) -> None:
    """Declare the subcommand."""
    one = commands.add_parser("infer", help="segment studies", description="Segment NIfTI files and DICOM series.")
    one.add_argument("input", nargs="+", type=source, help=INPUT_HELP)
    one.add_argument("-m", "--model", type=model_path, required=True, help=MODEL_HELP)
    one.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="output folder")
    one.add_argument("--output-type", type=output_types, default=("nifti",), metavar="TYPES", help=OUTPUT_HELP)
    seg_types = ["auto", "binary", "labelmap"]
    one.add_argument("--seg-type", default="auto", choices=seg_types, help="of DICOM SEG (auto: labelmap if many)")
    one.add_argument("--series", metavar="N|UID", help=SERIES_HELP)
    one.add_argument("--repair", type=repairs, default=frozenset(), metavar="WHAT", help=REPAIR_HELP)
    one.add_argument("--overlap", type=share, help="share of a tile covered again (default: the model's, 0.5 for ours)")
    one.add_argument("--tile", type=main.triple, metavar="X,Y,Z", help="tile in voxels (default: the model's patch)")
    one.add_argument("--batch", type=main.positive, metavar="N", help="tiles at a time, each in a share of the threads")
    one.add_argument("--engine", default="auto", choices=["auto", *ENGINES], help="default auto")
    precision_help = "of OpenVINO; bf16 where the CPU has it (default: int8 if the model is quantised, else float32)"
    one.add_argument("--precision", choices=["float32", "bf16", "int8"], help=precision_help)
    tta_help = "also average over the tile mirrored along the axes of training (slower)"
    one.add_argument("--tta", default="none", choices=["none", "mirror"], help=tta_help)
    one.add_argument("--roi-subset", type=names, metavar="NAME,...", help="only these classes (default: all)")
    one.add_argument("--statistics", action="store_true", help="also volume and intensity of each class, CSV and JSON")
    one.add_argument("--preview", action="store_true", help="also a picture of each segmentation (--report has both)")
    small_help = "make connected parts of less than so many millilitres background"
    one.add_argument("--remove-small", type=millilitres, default=0.0, metavar="ML", help=small_help)
    one.add_argument(
        "--fast", action="store_true", help="at half the model's resolution; labels on the image's own grid"
    )
    stow_help = "also send the DICOM objects to this DICOMweb server (https://HOST/dicom-web)"
    one.add_argument("--stow", default="", metavar="URL", help=stow_help)
    main.add_device_options(one)
    main.add_common_options(one)
    record = lambda args: args.output / "run.json"  # noqa: E731
    command = main.Command(
        "imaging infer",
        main.options,
        _workload,
        _warm_up,
        _run,
        record,
        _sections,
        huge_pages=True,
        alone=True,
    )
    one.set_defaults(command=command)


def _engine(args: argparse.Namespace) -> str:
    """The engine that was asked for, or the best that runs on the device that was."""
    from common.engines.registry import choose

    if not args.device.startswith("cuda"):
        return choose(args.engine)
    if args.engine not in ("auto", "torch"):
        raise UsageError(f"--device {args.device}: {args.engine} runs on the CPU here; only --engine torch does not")
    return "torch"


def _workload(args: argparse.Namespace, budget: MemoryBudget) -> "Workload":
    from apps.imaging.dicom.rtstruct import structures
    from apps.imaging.dicom.web import Downloads, check_address
    from apps.imaging.importers.convert import converted_model
    from apps.imaging.inference.outputs import OutputRequest, chosen_labels
    from apps.imaging.inference.pipeline import asked, open_cases
    from apps.imaging.inference.studies import fetched_before, find_studies, of_several_channels
    from apps.imaging.models.model_folder import at_half_resolution, read_model
    from apps.imaging.models.networks.registry import steps
    from apps.imaging.planning.infer import InferWorkload
    from common.engines.registry import require_precision

    if args.output.resolve() in [place.resolve() for place in args.input if isinstance(place, Path)]:
        raise UsageError(f"-o {args.output}: is an input too; its results would be taken for images the next time")
    model = read_model(converted_model(args.model, budget))
    several = len(model.channels) > 1
    if len(model.channels) != len(model.intensities):
        raise BadInput(f"{args.model}: a model of {len(model.channels)} channels, of which only nnU-Net's are read")
    if args.fast and not all(model.spacing):
        raise UsageError("--fast: this model takes images at their own spacing")
    if args.fast:
        model = at_half_resolution(model)
    overlap = model.inference.overlap if args.overlap is None else args.overlap
    tile = args.tile or model.patch
    step = steps(model.network, model.arguments)
    if any(size % of for size, of in zip(tile, step, strict=True)):
        raise UsageError(f"--tile: sides must be multiples of {','.join(map(str, step))} for this network")
    engine = _engine(args)
    precision = args.precision or ("int8" if model.int8 and engine == "openvino" else "float32")
    require_precision(engine, precision)
    if precision == "int8" and not model.int8:
        raise UsageError(f"--precision int8: {args.model} is not quantised; imaging compress --int8 makes one that is")
    chosen = chosen_labels(model, args.roi_subset)
    if "dicom-rtstruct" in args.output_type:
        structures(chosen)
    if args.tta == "mirror" and not model.mirror:
        raise UsageError(f"--tta mirror: {args.model} does not say along which axes it was trained to be mirrored")
    if args.stow:
        check_address(args.stow)
        if not any(kind.startswith("dicom") for kind in args.output_type):
            raise UsageError("--stow sends DICOM objects: --output-type dicom-seg or dicom-rtstruct makes them")
    pictures, numbers = args.preview or args.report, args.statistics or args.report
    wanted = OutputRequest(args.output_type, args.seg_type, pictures, numbers, args.stow)
    studies = of_several_channels(find_studies(args.input)) if several else find_studies(args.input)
    downloads = Downloads(existing(args.output), args.series)
    mirror = model.mirror if args.tta == "mirror" else ""
    settings = asked(chosen, precision, overlap, mirror, args.remove_small)
    settings |= {"tile": tile, "repair": sorted(args.repair), "outputs": asdict(wanted)}
    studies = [study.listed(downloads.listed(study.input), settings) for study in studies]
    finished = fetched_before(args.output, studies)
    cases = open_cases(
        [study for study in studies if study.study not in finished],
        model,
        downloads=downloads,
        repair=args.repair,
        wanted=wanted,
        tile=tile,
        overlap=overlap,
    )
    return InferWorkload(
        model=model,
        studies=tuple(studies),
        cases=cases,
        finished=finished,
        engine=engine,
        precision=precision,
        tile=tile,
        overlap=overlap,
        batch=args.batch,
        wanted=wanted,
        mirror=mirror,
        remove_small=args.remove_small,
        scratch=existing(args.output),
        downloads=downloads,
        threads=args.threads,
    )


def _sections(written: Mapping[str, Any], directory: Path) -> Iterable[str]:
    from apps.imaging.inference.report import studies

    return studies(written, directory)


def _warm_up(args: argparse.Namespace) -> str:
    from apps.imaging.planning.infer import WARM_UPS

    return WARM_UPS[_engine(args)]


def _run(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    args = session.request
    from apps.imaging.inference.labeling import LogitsToLabels
    from apps.imaging.inference.outputs import chosen_labels
    from apps.imaging.inference.pipeline import Job, run
    from apps.imaging.inference.studies import StudyTable
    from apps.imaging.models.model_folder import TORCH_NETWORK
    from apps.imaging.planning.infer import InferWorkload
    from common.engines.base import read_head
    from common.engines.mirroring import MirrorEngine
    from common.engines.registry import open_engine

    work = session.workload
    assert isinstance(work, InferWorkload)
    if args.engine == "auto" and work.engine != "openvino" and session.device is None:
        session.say(f"imaging infer: OpenVINO is not installed, using {work.engine}")
    plan, model = session.plan, work.model
    with session.phase("open"), session.reserving():  # compiled code and scratch that is hardly touched
        engine = open_engine(
            model.directory,
            name=work.engine,
            precision=work.precision,
            tile=work.tile,
            batch=plan["batch"],
            threads=args.threads,
            output=plan["space"],
            head=model.head,
            builder=TORCH_NETWORK,
            device=session.device.name if session.device and work.engine == "torch" else "cpu",
            heap=plan["allocator"] == "heap",
        )
    if work.mirror:
        engine = MirrorEngine(engine, ["xyz".index(axis) for axis in work.mirror], batch=plan["batch"])
    head = read_head(model.directory, model.head) if model.head and plan["space"] == "features" else None
    chosen = chosen_labels(model, args.roi_subset)
    kept = [label.value for label in chosen.labels]
    maker = LogitsToLabels([label.value for label in model.labels], head, kept)
    table = StudyTable.open(args.output, work.studies)
    job = Job(
        model=chosen,
        engine=engine,
        maker=maker,
        batch=plan["batch"],
        spill=plan["spill"],
        mirror=work.mirror,
        remove_small=work.remove_small,
        wanted=work.wanted,
        precision=work.precision,
        session=session,
        table=table,
        cases=work.cases,
        finished=work.finished,
    )
    return run(job)


def existing(path: Path) -> Path:
    """The nearest directory that is there already: on the same disk, as a rule."""
    return next(place for place in (path, *path.absolute().parents) if place.is_dir())
