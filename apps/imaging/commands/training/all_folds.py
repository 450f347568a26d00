"""``imaging train --all-folds``: a training of each fold, one after the other, and the ensemble of their models.

Each training plans and supervises itself under the ceiling, as if it were given alone; this process waits beside it. A
run that was ended continues: trained folds stay, and an unfinished one goes on from its checkpoint.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from apps.imaging.commands.stages import OF_EACH_RUN, interruptible, others, run_child, same_settings, say
from apps.imaging.models.networks.ensemble import MOST_MEMBERS
from common.errors import EXIT_OK, BadInput, UsageError

FOLDS = 5
SETTINGS, ENSEMBLE = "all_folds.json", "ensemble"
"""In the output folder: the options of the trainings, and the joined model."""


def all_folds(text: str) -> Callable[[argparse.Namespace], int]:
    """An argparse type: the number of folds; the value runs the command.

    Raises
    ------
    ArgumentTypeError
        If it is not from 2 to ``MOST_MEMBERS``.
    """
    count = int(text)
    if not 2 <= count <= MOST_MEMBERS:
        raise argparse.ArgumentTypeError(f"{text} is not a number of folds from 2 to {MOST_MEMBERS}")
    return partial(_run, count)


def _run(count: int, args: argparse.Namespace) -> int:
    if args.tune:
        raise UsageError("--all-folds: search with one --fold K/N and --tune first, and give all folds what it finds")
    if args.json or args.report:
        raise UsageError("--all-folds: give --json and --report with one --fold K/N")
    if args.dry_run:
        return interruptible(args, "imaging train", partial(_plan, count))
    return interruptible(args, "imaging train", partial(_train_and_join, count))


def _plan(count: int, args: argparse.Namespace) -> int:
    """Print the plan of each fold's training, up to the first that does not fit."""
    words = others(sys.argv[1:], "--all-folds")
    for number in range(count):
        say(args, f"fold {number}/{count}")
        code = run_child([*words, "--fold", f"{number}/{count}", "-o", str(args.output / f"fold_{number}")], out=True)
        if code != EXIT_OK:
            return code
    return EXIT_OK


def _train_and_join(count: int, args: argparse.Namespace) -> int:
    output: Path = args.output
    settings = {name: value for name, value in vars(args).items() if name not in OF_EACH_RUN}
    begun = any(output.glob("fold_*"))
    same_settings(output, output / SETTINGS, {"folds": count, **settings}, begun=begun)
    words = others(sys.argv[1:], "--all-folds")
    folders = [output / f"fold_{number}" for number in range(count)]
    # The last one first: it is the one that has no cases where there are too few.
    for number, folder in reversed([*enumerate(folders)]):
        if _trained(folder):
            say(args, f"fold {number}/{count}: trained before")
            continue
        say(args, f"fold {number}/{count}")
        code = run_child([*words, "--fold", f"{number}/{count}", "-o", str(folder)])
        if code != EXIT_OK:
            return code
    quiet = ["-q"] if args.quiet else []
    joined = ["ensemble", *map(str, folders), "-o", str(output / ENSEMBLE), "--memory", args.memory, *quiet]
    return run_child(joined)


def _trained(folder: Path) -> bool:
    """True if a folder holds a whole model; one that is damaged is trained anew."""
    from apps.imaging.models.model_folder import read_manifest

    with suppress(BadInput):
        return bool(read_manifest(folder))
    return False
