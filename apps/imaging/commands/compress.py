"""``imaging compress``: its options, and which functions plan and run it."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.commands import compress_stages
from apps.imaging.commands.arguments import MODEL_HELP, duration, fold, part_or_size
from apps.imaging.compression.options import DECOMPOSITIONS, IMPORTANCE, TILES, CompressOptions
from apps.imaging.planning import baselines
from apps.imaging.training.options import HYPER
from common.cli import main
from common.cli.session import CommandSession
from common.memory.process.budget import MemoryBudget
from common.model_folder import MANIFEST, model_path, shipped_note

if TYPE_CHECKING:
    from apps.imaging.planning.compress import CompressWorkload, ShrinkWorkload

DESCRIPTION = """Make a model's network smaller: whole channels and blocks less, kernels of low rank, half precision,
8-bit integers. Removed channels change its labels, and fine-tuning brings most of the quality back; --measure says what
is lost. docs/techniques.md says what each saves."""


def add(commands: Any) -> None:
    """Declare the subcommand."""
    one = commands.add_parser("compress", help="make a model smaller", description=DESCRIPTION)
    one.add_argument("model", type=model_path, metavar="MODEL", help=MODEL_HELP)
    one.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL2", help="model folder to write")
    shrinking = one.add_argument_group("a smaller network (in this order)")
    shrinking.add_argument(
        "--drop-blocks",
        action=_Stage,
        type=main.positive,
        default=0,
        metavar="N",
        help="leave out the N residual blocks of least effect",
    )
    shrinking.add_argument(
        "--prune",
        action=_Stage,
        type=_share,
        metavar="SHARE",
        help="remove whole channels with this share of the parameters (0.8)",
    )
    shrinking.add_argument(
        "--importance",
        choices=IMPORTANCE,
        default="norm",
        help="which channels go: the smallest by norm of weights (default), by change of the loss, by share of zeros",
    )
    shrinking.add_argument(
        "--low-rank",
        action=_Stage,
        type=part_or_size,
        metavar="ENERGY|SIZE",
        help="Tucker's decomposition of 3D kernels: keep this share of their energy (0.9), or make the weights so small"
        " (300KB)",
    )
    shrinking.add_argument(
        "--decomposition",
        choices=DECOMPOSITIONS,
        default="tucker",
        help="form of --low-rank: tucker (default), or cp, of as many numbers, which keeps less",
    )
    half_help = "weights and ONNX file in half precision"
    shrinking.add_argument("--fp16", dest="half", action=_Stage, nargs=0, const=True, default=False, help=half_help)
    tuning = one.add_argument_group("fine-tuning after it, with soft labels of MODEL")
    data_help = "data set, as imaging train takes it"
    tuning.add_argument("--finetune", action=_Stage, type=Path, metavar="DATASET_DIR", help=data_help)
    length = tuning.add_mutually_exclusive_group()
    length.add_argument("--time", type=duration, metavar="30min", help="length of the fine-tuning")
    length.add_argument("--steps", type=main.positive, metavar="N", help="its optimiser steps (default 2000)")
    folds = tuning.add_mutually_exclusive_group()
    folds.add_argument("--fold", type=fold, metavar="K/N", help="the cases that MODEL has not seen (default 0/5)")
    folds.add_argument("--no-fold", action="store_true", help="fine-tune, or measure, on every case")
    main.add_settings_option(tuning, HYPER)
    integers = one.add_argument_group("8-bit integers (last)")
    int8_help = "convolutions in 8-bit integers, for OpenVINO"
    integers.add_argument("--int8", action=_Stage, nargs=0, const=True, default=False, help=int8_help)
    weights_help = "weights alone in 8-bit integers: as small, as fast as before, and no images are needed"
    integers.add_argument("--int8-weights", action=_Stage, nargs=0, const=True, default=False, help=weights_help)
    measuring = one.add_argument_group("what MODEL2 loses (after all)")
    measure_help = (
        "label the held-out cases (--fold) of this data set with both models, and write what MODEL2 loses and takes"
        " into it, which imaging infer --allow-quality-loss reads; given alone, MODEL2 is one that was made before"
    )
    measuring.add_argument("--measure", action=_Stage, type=Path, metavar="DATASET_DIR", help=measure_help)
    images = one.add_argument_group("images that decide, for --int8, --importance and --drop-blocks")
    images.add_argument("--calibration", type=Path, metavar="DIR", help="volumes like those that will be segmented")
    images.add_argument(
        "--tiles", type=main.positive, default=TILES, metavar="N", help=f"tiles that are read (default {TILES})"
    )
    main.add_common_options(one)
    command = main.Command(
        "imaging compress",
        _options,
        _workload,
        lambda options: baselines.of_compress(int8=options.quantises, images=options.needs_images),
        _run,
        lambda options: options.output / "run.json",
        huge_pages=True,
        alone=True,
    )
    one.set_defaults(command=command)


class _Stage(argparse.Action):
    """Stores an option that is a stage; several stages are commands of their own, one after the other."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: object = None
    ) -> None:
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)
        namespace.run = compress_stages.run if compress_stages.are_needed(namespace) else None


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _options(args: argparse.Namespace) -> CompressOptions:
    compress_stages.check_stages(args)
    return CompressOptions(
        model=args.model,
        output=args.output,
        int8=args.int8,
        int8_weights=args.int8_weights,
        calibration=args.calibration,
        tiles=args.tiles,
        drop_blocks=args.drop_blocks,
        prune=args.prune,
        importance=args.importance,
        low_rank=args.low_rank,
        decomposition=args.decomposition,
        half=args.half,
        threads=args.threads,
    )


def _workload(options: CompressOptions, budget: MemoryBudget) -> "CompressWorkload | ShrinkWorkload":
    from apps.imaging.compression.quantization import CompressRequest
    from apps.imaging.compression.shrinking import ShrinkRequest
    from apps.imaging.importers.convert import converted_model
    from apps.imaging.planning.compress import CompressWorkload, ShrinkWorkload

    directory = options.model
    if not (directory / MANIFEST).is_file():
        directory = converted_model(directory, budget)
    if options.quantises:
        return CompressWorkload(CompressRequest.of(options, directory))
    return ShrinkWorkload(ShrinkRequest.of(options, directory))


def _run(session: "CommandSession[CompressOptions, CompressWorkload | ShrinkWorkload]") -> Mapping[str, Any]:
    from apps.imaging.compression import quantization, shrinking

    request = session.workload.request
    if note := shipped_note(request.model.directory):
        session.say(note)
    if isinstance(request, quantization.CompressRequest):
        return quantization.run(request, session)
    return shrinking.run(request, session)
