"""``imaging train --all-folds``: a training of each fold, one after the other, and the ensemble of their models.

Each training plans and supervises itself under the ceiling, as if it were given alone; this process waits beside it. A
run that was ended continues: trained folds stay, and an unfinished one goes on from its checkpoint.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from apps.imaging.models.networks.ensemble import MOST_MEMBERS
from common.cli import streams
from common.errors import EXIT_INTERRUPTED, EXIT_OK, BadInput, UsageError
from common.files import write_json
from common.memory.process import child

FOLDS = 5
SETTINGS, ENSEMBLE = "all_folds.json", "ensemble"
"""In the output folder: the options of the trainings, and the joined model."""
OF_EACH_RUN = (
    *("command", "run", "fold", "output", "memory", "gpu_memory", "threads", "resume"),
    *("quiet", "verbose", "json", "report", "plan", "dry_run"),
)
"""Options that may differ when the command is given again."""


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
    if args.json or args.dry_run or args.report or args.plan:
        raise UsageError("--all-folds: give --json, --report, --dry-run and --plan with one --fold K/N")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _train_and_join(count, args)
    except KeyboardInterrupt:
        _say(args, "imaging train: interrupted; give the same command again to continue")
        return EXIT_INTERRUPTED


def _train_and_join(count: int, args: argparse.Namespace) -> int:
    output: Path = args.output
    _same_settings(output, {"folds": count, **_settings(args)})
    words = _others(sys.argv[1:])
    folders = [output / f"fold_{number}" for number in range(count)]
    # The last one first: it is the one that has no cases where there are too few.
    for number, folder in reversed([*enumerate(folders)]):
        if _trained(folder):
            _say(args, f"fold {number}/{count}: trained before")
            continue
        _say(args, f"fold {number}/{count}")
        code = _child([*words, "--fold", f"{number}/{count}", "-o", str(folder)])
        if code != EXIT_OK:
            return code
    quiet = ["-q"] if args.quiet else []
    joined = ["ensemble", *map(str, folders), "-o", str(output / ENSEMBLE), "--memory", args.memory, *quiet]
    return _child(joined)


def _trained(folder: Path) -> bool:
    """True if a folder holds a whole model; one that is damaged is trained anew."""
    from apps.imaging.models.model_folder import read_manifest

    with suppress(BadInput):
        return bool(read_manifest(folder))
    return False


def _others(words: Sequence[str]) -> list[str]:
    """The words of a command line without those that each training has of its own."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-o", "--output")
    parser.add_argument("--all-folds", nargs="?")
    parser.add_argument("--resume", action="store_true")
    return parser.parse_known_args(words)[1]


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The options that decide the models, as JSON has them."""
    settings = {name: value for name, value in vars(args).items() if name not in OF_EACH_RUN}
    kept: dict[str, Any] = json.loads(json.dumps(settings, default=lambda path: str(path.resolve())))
    return kept


def _same_settings(output: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder with folds of other options; else write down these.

    Raises
    ------
    BadInput
        If folds were trained with other options, which are named, or the folder cannot be used.
    """
    path = output / SETTINGS
    try:
        begun = path.exists() and any(output.glob("fold_*"))
        earlier = json.loads(path.read_text("utf-8")) if begun else settings
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, earlier)
    except OSError as error:
        raise BadInput(f"{output}: {error.strerror}", public="output folder") from None
    except ValueError:
        raise BadInput(f"{path}: not readable; choose another folder", public="settings unreadable") from None
    if earlier != settings:
        names = sorted(name for name in {*earlier, *settings} if earlier.get(name) != settings.get(name))
        options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise BadInput(f"{output}: holds folds of other options ({options}); choose another folder")


def _child(arguments: Sequence[str]) -> int:
    done = child.run_command("apps.imaging", arguments, on_line=streams.say)
    return done.exit.status


def _say(args: argparse.Namespace, line: str) -> None:
    if not args.quiet:
        streams.say(line)
