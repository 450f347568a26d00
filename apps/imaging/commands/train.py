"""``imaging train``'s options, and the job they describe."""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.commands.arguments import duration, fold
from apps.imaging.planning import baselines
from common.cli import main
from common.cli.session import CommandSession
from common.errors import BadInput, UsageError
from common.memory.process.budget import MemoryBudget
from common.training import amp, optimizers

if TYPE_CHECKING:
    from common.memory.plan.planner import Workload

HYPER: Mapping[str, Any] = {
    "batch": 2,
    "learning_rate": 2e-3,
    "weight_decay": 1e-4,
    "clip": 5.0,
    "mirror": "x",
    "validation_cases": 8,
    "optimizer": optimizers.DEFAULT,
    "dice": "sample",
}
"""Hyper-parameters that ``--set`` can change."""
NETWORKS = ("segresnet", "dynunet", "basicunet", "unet")
DICE = ("sample", "batch")
STEPS = 2000


def add(commands: Any) -> None:
    """Declare the subcommand."""
    one = commands.add_parser("train", help="train a network", description="Train on a data set in Decathlon layout.")
    one.add_argument("dataset", type=Path, metavar="DATASET_DIR", help="folder with imagesTr, labelsTr, dataset.json")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL_DIR", help="model folder to write")
    folds = one.add_mutually_exclusive_group()
    folds.add_argument("--fold", type=fold, default=(0, 5), metavar="K/N", help="hold out part K of N (default 0/5)")
    folds.add_argument("--no-fold", dest="fold", action="store_const", const=None, help="train on every case")
    one.add_argument("--network", choices=NETWORKS, default="segresnet", help="default segresnet")
    one.add_argument("--patch", type=main.triple, metavar="X,Y,Z", help="voxels per patch (default: the median case)")
    length = one.add_mutually_exclusive_group()
    length.add_argument("--steps", type=main.positive, metavar="N", help=f"optimiser steps (default {STEPS})")
    length.add_argument("--epochs", type=main.positive, metavar="N", help="passes over the training cases")
    length.add_argument("--time", type=duration, metavar="30min", help="train for so long")
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
    one.add_argument("--skip-bad", action="store_true", help="leave unusable cases out instead of stopping")
    one.add_argument("--resume", action="store_true", help="insist on continuing an unfinished training")
    main.add_settings_option(one, HYPER)
    main.add_device_options(one)
    main.add_common_options(one)
    record = lambda args: args.output / "run.json"  # noqa: E731
    command = main.Command(
        "imaging train",
        main.options,
        _workload,
        lambda args: baselines.TRAIN,
        _run,
        record,
        huge_pages=True,
        merge=True,
        alone=True,
    )
    one.set_defaults(command=command)


def _workload(args: argparse.Namespace, budget: MemoryBudget) -> "Workload":
    """Read the data set's headers and settle everything but what the planner chooses."""
    from apps.imaging.models.networks import registry
    from apps.imaging.planning.train import TrainWorkload
    from apps.imaging.training.dataset import intensity_operations, read_dataset
    from apps.imaging.training.recipe import Job, Recipe, default_patch

    if args.amp != "auto" and (note := amp.require(args.amp, args.device)) and not args.quiet:
        _say(f"imaging train: {note}")
    hyper = main.parse_settings(args.set, HYPER)
    batch, micro_batch = _batch(args, hyper)
    _check(hyper)
    warn = (lambda line: None) if args.quiet else (lambda line: _say(line))
    dataset = read_dataset(args.dataset, skip_bad=args.skip_bad, warn=warn)
    training, held_out = dataset.split(args.fold)
    arguments = registry.arguments(args.network, {}, in_channels=1, out_channels=len(dataset.labels))
    step = registry.divisor(args.network, arguments)
    patch = args.patch or default_patch(dataset, step)
    if any(size % step for size in patch):
        raise UsageError(
            f"--patch {','.join(map(str, patch))}: each side must be a multiple of {step} for {args.network}"
        )
    steps = args.steps or (args.epochs * -(-len(training) // batch) if args.epochs else STEPS)
    recipe = Recipe(
        network=args.network,
        arguments=arguments,
        patch=patch,
        batch=batch,
        steps=None if args.time else steps,
        seconds=args.time,
        learning_rate=hyper["learning_rate"],
        weight_decay=hyper["weight_decay"],
        clip=hyper["clip"],
        mirror=hyper["mirror"],
        validation_cases=hyper["validation_cases"],
        fold=args.fold,
        seed=args.seed,
        optimizer=hyper["optimizer"],
        dice=hyper["dice"],
    )
    operations = intensity_operations(dataset, training)
    job = Job(dataset, training, held_out, recipe, operations, args.output, args.skip_bad, args.resume, _typed())
    precision, cache = (None if value == "auto" else value for value in (args.amp, args.cache))
    return TrainWorkload(job, micro_batch, precision, cache, args.threads)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _batch(args: argparse.Namespace, hyper: Mapping[str, Any]) -> tuple[int, int | None]:
    """Patches per step, and per forward pass where that is fixed."""
    if args.micro_batch and args.accumulate:
        return args.micro_batch * args.accumulate, args.micro_batch
    batch = int(hyper["batch"])
    micro_batch = -(-batch // args.accumulate) if args.accumulate else args.micro_batch
    if max(args.accumulate or 1, micro_batch or 1) > batch:
        raise UsageError(f"--micro-batch and --accumulate cannot be more than the batch of {batch} (--set batch=N)")
    return batch, micro_batch


def _check(hyper: Mapping[str, Any]) -> None:
    for name, value in hyper.items():
        if not isinstance(value, str) and not 0 <= value < float("inf"):
            raise UsageError(f"--set {name}={value}: must not be negative")
    if hyper["batch"] < 1 or set(hyper["mirror"]) - set("xyz"):
        raise UsageError("--set: batch must be at least 1, and mirror made of x, y and z")
    optimizers.check(hyper["optimizer"])
    if hyper["dice"] not in DICE:
        raise UsageError(f"--set dice={hyper['dice']}: Dice is of each sample or of the batch")


def _typed() -> str:
    """The command line without directories: a model card must not tell whose home it was made in."""
    words = [Path(word).name if "/" in word and not re.fullmatch(r"\d+/\d+", word) else word for word in sys.argv[1:]]
    return " ".join(["imaging", *words])


def _run(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    args = session.request
    from apps.imaging.planning.train import TrainWorkload
    from apps.imaging.training.loop import run

    assert isinstance(session.workload, TrainWorkload)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{args.output}: {error.strerror}", public="output folder") from None
    return run(session.workload.job, session)
