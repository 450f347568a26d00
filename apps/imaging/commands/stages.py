"""Commands in several stages, each of which is a command of its own that plans and supervises itself."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import streams
from common.errors import EXIT_INTERRUPTED, BadInput
from common.files import write_json
from common.memory.process import child

OF_EACH_RUN = (
    *("command", "run", "fold", "output", "memory", "gpu_memory", "threads", "resume"),
    *("quiet", "verbose", "json", "report", "plan", "dry_run", "world", "world_size"),
)
"""Options that may differ when the command is given again."""

WITHOUT_VALUE = ("--report", "--json", "--tensorboard")


def interruptible(args: argparse.Namespace, name: str, stages: Callable[[argparse.Namespace], int]) -> int:
    """Run all stages; an interruption ends the one that runs, and says how to go on.

    Parameters
    ----------
    name
        The command, for the message.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return stages(args)
    except KeyboardInterrupt:
        say(args, f"{name}: interrupted; give the same command again to continue")
        return EXIT_INTERRUPTED


def same_settings(output: Path, path: Path, settings: Mapping[str, Any], *, begun: bool) -> None:
    """Refuse a folder that was begun with other options; else write down these.

    Parameters
    ----------
    output, path
        The folder, for the message; the file with the options.
    settings
        Options that decide the result.
    begun
        True if the folder has results of stages.

    Raises
    ------
    BadInput
        If it was begun with other options, which are named, or cannot be used.
    """
    kept: dict[str, Any] = json.loads(json.dumps(settings, default=lambda path: str(path.resolve())))
    try:
        earlier = json.loads(path.read_text("utf-8")) if begun and path.exists() else kept
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, earlier)
    except OSError as error:
        raise BadInput(f"{output}: {error.strerror}", public="output folder") from None
    except ValueError:
        raise BadInput(f"{path}: not readable; choose another folder", public="settings unreadable") from None
    if earlier != kept:
        names = sorted(name for name in {*earlier, *kept} if earlier.get(name) != kept.get(name))
        options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise BadInput(f"{output}: holds results of other options ({options}); choose another folder")


def run_child(arguments: Sequence[str], *, out: bool = False) -> int:
    """Run a stage and return its exit code; its lines on stderr are passed on, with ``out`` also those on stdout."""
    done = child.run_command("apps.imaging", arguments, on_line=streams.say)
    if out:
        sys.stdout.write(done.stdout.decode("utf-8", "replace"))
    return done.exit.status


def others(words: Sequence[str], *dropped: str) -> list[str]:
    """The words of a command line without those that each training has of its own, and without further options.

    Parameters
    ----------
    dropped
        The further options; ``--report`` and ``--json`` have no value.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-o", "--output")
    parser.add_argument("--resume", action="store_true")
    for option in dropped:
        if option in WITHOUT_VALUE:
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, nargs="?")
    return parser.parse_known_args(words)[1]


def say(args: argparse.Namespace, line: str) -> None:
    """One line on stderr, unless the user wants errors only."""
    if not args.quiet:
        streams.say(line)
