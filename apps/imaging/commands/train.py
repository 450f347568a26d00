"""``imaging train``: its options, and which functions plan and run it."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.commands.all_folds import FOLDS, all_folds
from apps.imaging.commands.arguments import class_table, duration, fold, voxel_size
from apps.imaging.planning import baselines
from apps.imaging.training.options import HYPER, STEPS, Levels, TrainOptions
from common import model_folder
from common.cli import main, ranks
from common.cli.session import CommandSession
from common.errors import BadInput, UsageError
from common.memory.process.budget import MemoryBudget

if TYPE_CHECKING:
    from apps.imaging.planning.train import TrainWorkload

DESCRIPTION = """Train on a data set in the layout of the Medical Segmentation Decathlon, or on a raw data set of
nnU-Net (CASE_0000.nii.gz, CASE_0001.nii.gz, ... are a case's channels; voxels of the label "ignore" do not count), or
on label maps alone, of which images of any contrast are synthesised."""
NETWORK = "segresnet"
NETWORKS = (NETWORK, "dynunet", "basicunet", "unet", "plainconvunet", "residualencoderunet")


def add(commands: Any) -> None:
    """Declare the subcommand."""
    one = commands.add_parser("train", help="train a network", description=DESCRIPTION)
    one.add_argument("dataset", type=Path, metavar="DATASET_DIR", help="folder with imagesTr, labelsTr, dataset.json")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL_DIR", help="model folder to write")
    folds = one.add_mutually_exclusive_group()
    folds.add_argument("--fold", type=fold, default=(0, 5), metavar="K/N", help="hold out part K of N (default 0/5)")
    folds.add_argument("--no-fold", dest="fold", action="store_const", const=None, help="train on every case")
    folds.add_argument(
        "--all-folds",
        dest="run",
        nargs="?",
        type=all_folds,
        const=str(FOLDS),
        metavar="N",
        help=f"train each of N folds (default {FOLDS}), and join their models in MODEL_DIR/ensemble",
    )
    one.add_argument(
        "--synthesize",
        type=class_table,
        metavar="TABLE",
        help='synthesise the images of a folder of label maps; a class table (JSON), or "brain", which is installed',
    )
    one.add_argument("--network", choices=NETWORKS, help=f"default: that of --init, else {NETWORK}")
    one.add_argument(
        "--init",
        type=model_folder.model_path,
        metavar="MODEL",
        help="start from the weights of a model that imaging train made; network, spacing, normalisation are its own",
    )
    one.add_argument(
        "--distill",
        type=model_folder.model_path,
        metavar="MODEL",
        help="learn from this model's predictions too (soft labels), as after imaging compress --prune",
    )
    recipe_help = "network, patches, spacing and normalisation from a file that imaging fingerprint has written"
    one.add_argument("--recipe", type=Path, metavar="FILE", help=recipe_help)
    one.add_argument("--patch", type=main.triple, metavar="X,Y,Z", help="voxels per patch (default: the median case)")
    one.add_argument(
        "--layers",
        action="append",
        default=[],
        metavar="NAME=N[,N...]",
        help="an argument of the network (segresnet: init_filters=8, blocks_down=1,1,1,1 with blocks_up=1,1,1; dynunet:"
        " strides=1,2x2x1,2)",
    )
    spacing_help = "size of the network's voxels in mm (default: the cases' median)"
    one.add_argument("--spacing", type=voxel_size, metavar="X,Y,Z", help=spacing_help)
    length = one.add_mutually_exclusive_group()
    length.add_argument("--steps", type=main.positive, metavar="N", help=f"optimiser steps (default {STEPS})")
    length.add_argument("--epochs", type=main.positive, metavar="N", help="passes over the training cases")
    time_help = "length of the training in s, min or h; reading before it and writing the model after it come on top"
    length.add_argument("--time", type=duration, metavar="30min", help=time_help)
    one.add_argument(
        "--micro-batch", type=main.positive, metavar="N", help="patches per forward pass (default: planned)"
    )
    one.add_argument("--accumulate", type=main.positive, metavar="N", help="forward passes per step (default: planned)")
    one.add_argument(
        "--amp", choices=["auto", "off", "bf16", "fp16"], default="auto", help="default auto: bf16 if it pays here"
    )
    one.add_argument(
        "--cache", choices=["auto", "memory", "disk"], default="auto", help="where prepared cases are kept"
    )
    one.add_argument("--skip-bad", action="store_true", help="leave out cases that cannot be used instead of stopping")
    one.add_argument("--resume", action="store_true", help="fail if there is no unfinished training to continue")
    one.add_argument("--tensorboard", action="store_true", help="write event files into MODEL_DIR/tensorboard")
    main.add_settings_option(one, HYPER)
    main.add_device_options(one)
    ranks.add_option(one)
    main.add_common_options(one)
    command = main.Command(
        "imaging train",
        _options,
        _workload,
        lambda options: baselines.of_training(events=options.tensorboard, ranks=options.world.size),
        _run,
        lambda options: options.output / "run.json",
        huge_pages=True,
        merge=True,
        alone=True,
    )
    one.set_defaults(command=command)


def _options(args: argparse.Namespace) -> TrainOptions:
    hyper = main.parse_settings(args.set, HYPER)
    micro_batch, accumulate = args.micro_batch, args.accumulate
    if args.recipe and ((micro_batch and accumulate) or any(pair.startswith("batch=") for pair in args.set)):
        raise UsageError("--recipe: the file has the batch; edit it, and leave out --set batch or --accumulate")
    if micro_batch and accumulate:
        hyper["batch"] = micro_batch * accumulate * args.world.size
    elif accumulate:
        micro_batch = -(-args.world.largest_share(hyper["batch"]) // accumulate)
    return TrainOptions(
        dataset=args.dataset,
        output=args.output,
        synthesize=args.synthesize,
        network=args.network or (None if args.init or args.recipe else NETWORK),
        recipe=args.recipe,
        layers=_layers(args.layers),
        init=args.init,
        distill=args.distill,
        patch=args.patch,
        spacing=args.spacing,
        fold=args.fold,
        steps=args.steps,
        epochs=args.epochs,
        seconds=args.time,
        micro_batch=micro_batch,
        accumulate=accumulate,
        amp=None if args.amp == "auto" else args.amp,
        cache=None if args.cache == "auto" else args.cache,
        skip_bad=args.skip_bad,
        tensorboard=args.tensorboard,
        resume=args.resume,
        seed=args.seed,
        threads=args.threads,
        device=args.device,
        world=args.world,
        quiet=args.quiet,
        command=_typed(),
        **hyper,
    )


def _layers(pairs: Sequence[str]) -> dict[str, Levels]:
    """Arguments of a network: whole numbers with commas between them, or three with an x for the axes of a level."""
    chosen: dict[str, Levels] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            levels = [[int(size) for size in part.split("x")] for part in text.split(",")]
            chosen[name] = [sizes if len(sizes) > 1 else sizes[0] for sizes in levels]
        except ValueError:
            raise UsageError(
                f"--layers {pair}: expected NAME=N or NAME=N,N,... with whole numbers, NxNxN for axes"
            ) from None
    return chosen


def _typed() -> str:
    """The command line without directories: a model card must not tell whose home it was made in."""
    words = [Path(word).name if "/" in word and not re.fullmatch(r"\d+/\d+", word) else word for word in sys.argv[1:]]
    return " ".join(["imaging", *words])


def _workload(options: TrainOptions, budget: MemoryBudget) -> "TrainWorkload":
    from apps.imaging.planning.train import TrainWorkload
    from apps.imaging.training.request import TrainRequest

    model_folder.check_output(options.output, "imaging")
    return TrainWorkload(TrainRequest.of(options))


def _run(session: "CommandSession[TrainOptions, TrainWorkload]") -> Mapping[str, Any]:
    from apps.imaging.training.loop import run

    output = session.request.output
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{output}: {error.strerror}", public="output folder") from None
    return run(session.workload.request, session)
