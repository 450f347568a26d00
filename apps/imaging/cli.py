"""The command line ``imaging``: options, and which function does what. Heavy modules load when they are used."""

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging import warm_up
from apps.imaging.commands import compress, train
from common import __version__
from common.cli import fetch_bench, main
from common.cli.session import CommandSession
from common.errors import BadInput, UsageError
from common.memory.process.budget import MemoryBudget

if TYPE_CHECKING:
    from common.memory.plan.planner import Workload


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="imaging", description="3D medical image segmentation inside a stated ceiling.")
    top.add_argument("--version", action="version", version=f"peakline {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    train.add(commands)
    _infer(commands)
    compress.add(commands)
    _evaluate(commands)
    _inspect(commands)
    fetch_bench.add_fetch(commands, "imaging")
    fetch_bench.add_bench(commands, "imaging")
    return top


def share(text: str) -> float:
    """An argparse type: a number in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def millilitres(text: str) -> float:
    """An argparse type: a volume that is not negative."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a volume in millilitres")
    return value


ENGINES = ("openvino", "onnxruntime", "torch")
"""``common.engines.registry.ENGINES``, which is not imported for ``--help``."""
REPAIR_HELP = "resample a tilted gantry or uneven spacing instead of refusing: tilt,spacing"


def repairs(text: str) -> frozenset[str]:
    """An argparse type: a list of defects that may be resampled away."""
    chosen = frozenset(text.split(","))
    if unknown := chosen - {"tilt", "spacing"}:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from tilt, spacing")
    return chosen


INPUT_HELP = (
    "NIfTI file, DICOM folder or zip, folder of these, or DICOMweb address (.../studies/UID or .../studies?...)"
)
OUTPUT_TYPES = ("nifti", "dicom-seg", "dicom-rtstruct")
OUTPUT_HELP = f"what to write, of {', '.join(OUTPUT_TYPES)} (default nifti)"


def output_types(text: str) -> tuple[str, ...]:
    """An argparse type: a list of file types."""
    chosen = tuple(dict.fromkeys(text.split(",")))
    if unknown := set(chosen) - set(OUTPUT_TYPES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(OUTPUT_TYPES)}")
    return chosen


def source(text: str) -> Path | str:
    """An argparse type: a path, or the address of a DICOMweb server."""
    return text if text.startswith(("http://", "https://")) else Path(text)


def existing(path: Path) -> Path:
    """The nearest directory that is there already: on the same disk, as a rule."""
    return next(place for place in (path, *path.absolute().parents) if place.is_dir())


def names(text: str) -> list[str]:
    """An argparse type: names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _infer(commands: Any) -> None:
    one = commands.add_parser("infer", help="segment studies", description="Segment NIfTI files and DICOM series.")
    one.add_argument("input", nargs="+", type=source, help=INPUT_HELP)
    one.add_argument("-m", "--model", type=Path, required=True, help="model folder")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="output folder")
    one.add_argument("--output-type", type=output_types, default=("nifti",), metavar="TYPES", help=OUTPUT_HELP)
    seg_types = ["auto", "binary", "labelmap"]
    one.add_argument("--seg-type", default="auto", choices=seg_types, help="of DICOM SEG (auto: labelmap if many)")
    one.add_argument("--series", metavar="N|UID", help="which series, where a DICOM folder has several")
    one.add_argument("--repair", type=repairs, default=frozenset(), metavar="WHAT", help=REPAIR_HELP)
    one.add_argument("--overlap", type=share, help="share of a tile covered again (default: the model's, 0.5 for ours)")
    one.add_argument("--tile", type=main.triple, metavar="X,Y,Z", help="tile in voxels (default: the model's patch)")
    one.add_argument("--batch", type=main.positive, metavar="N", help="tiles at a time, each in a share of the threads")
    one.add_argument("--engine", default="auto", choices=["auto", *ENGINES], help="default auto")
    precision_help = "OpenVINO has all (default: int8 where the model was made so, else float32)"
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
        _infer_workload,
        _infer_warm_up,
        _infer_run,
        record,
        _infer_sections,
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


def _infer_workload(args: argparse.Namespace, budget: MemoryBudget) -> "Workload":
    from apps.imaging.dicom.rtstruct import structures
    from apps.imaging.dicom.web import Downloads, check_address
    from apps.imaging.importers.convert import imported
    from apps.imaging.inference.outputs import Wanted, chosen_labels
    from apps.imaging.inference.pipeline import asked, open_cases
    from apps.imaging.inference.studies import fetched_before, find_studies, of_several_channels
    from apps.imaging.models.model_folder import at_half_resolution, read_model
    from apps.imaging.models.networks.registry import steps
    from apps.imaging.planning.infer import InferWorkload
    from common.engines.registry import PRECISIONS

    if args.output.resolve() in [place.resolve() for place in args.input if isinstance(place, Path)]:
        raise UsageError(f"-o {args.output}: is an input too; its results would be taken for images the next time")
    model = read_model(imported(args.model, budget))
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
    if precision not in PRECISIONS[engine]:
        raise UsageError(f"--precision {precision}: not with the engine {engine}")
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
    wanted = Wanted(args.output_type, args.seg_type, pictures, numbers, args.stow)
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


def _infer_sections(written: Mapping[str, Any], directory: Path) -> Iterable[str]:
    from apps.imaging.inference.report import studies

    return studies(written, directory)


def _infer_warm_up(args: argparse.Namespace) -> str:
    from apps.imaging.planning.infer import WARM_UPS

    return WARM_UPS[_engine(args)]


def _infer_run(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    args = session.request
    from apps.imaging.inference.labeling import LabelMaker
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
    maker = LabelMaker([label.value for label in model.labels], head, kept)
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


def _evaluate(commands: Any) -> None:
    about = "Dice, HD95, surface Dice at 1 mm and volume error, per class and case."
    one = commands.add_parser("evaluate", help="compare with references", description=about)
    one.add_argument("predictions", type=Path, help="label file, or folder (an output of imaging infer)")
    one.add_argument("references", type=Path, help="label file, or folder with files of the same names")
    main.add_common_options(one)
    floor = lambda args: warm_up.EVALUATE  # noqa: E731
    command = main.Command(
        "imaging evaluate", main.options, _evaluate_workload, floor, _evaluate_run, _evaluation_json, huge_pages=True
    )
    one.set_defaults(command=command)


def _evaluation_json(args: argparse.Namespace) -> Path:
    """Beside what is evaluated."""
    beside: Path = args.predictions if args.predictions.is_dir() else args.predictions.parent
    return beside / "evaluation.json"


def _evaluate_workload(args: argparse.Namespace, budget: MemoryBudget) -> "Workload":
    from apps.imaging.evaluation.metrics import find_pairs, scan
    from apps.imaging.planning.evaluate import EvaluateWorkload

    pairs = find_pairs(args.predictions, args.references)
    return EvaluateWorkload(pairs, [scan(pair) for pair in pairs], args.threads)


def _evaluate_run(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
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


def _inspect(commands: Any) -> None:
    one = commands.add_parser(
        "inspect", help="say what a study or a model is", description="Says what was found, without any identifier."
    )
    one.add_argument("path", type=source, metavar="INPUT|MODEL")
    one.add_argument("--series", metavar="N|UID", help="which series, where a DICOM folder has several")
    one.add_argument("--repair", type=repairs, default=frozenset(), metavar="WHAT", help=REPAIR_HELP)
    one.set_defaults(run=_inspect_run, name="imaging inspect")


def _inspect_run(args: argparse.Namespace) -> int:
    from common.model_folder import MANIFEST, load, verify

    if isinstance(args.path, Path) and (args.path / MANIFEST).is_file():
        from apps.imaging.models.model_folder import APPLICATION, inspect_lines, read_model

        verify(args.path, load(args.path, application=APPLICATION))
        lines = inspect_lines(read_model(args.path))
    else:
        import tempfile

        from apps.imaging.dicom.web import Downloads
        from apps.imaging.inference.studies import open_volume

        downloads = Downloads(Path(tempfile.gettempdir()), args.series)
        lines = open_volume(*downloads.path(str(args.path)), args.repair).describe()
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
