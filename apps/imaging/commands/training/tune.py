"""``imaging train --tune N``: try other settings under the same ceiling, and train with the best.

Each trial is a training of its own that plans and supervises itself under the ceiling; this process waits beside it. It
is scored on training cases that it does not see, never on those that the fold holds out. A search that was ended
continues: trials that have ended stay, and the one that was running goes on from its checkpoint.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apps.imaging.commands.stages import OF_EACH_RUN, interruptible, others, run_child, say
from common.cli import record_file, streams
from common.errors import (
    EXIT_DOES_NOT_FIT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNFORESEEN,
    BadInput,
    UsageError,
)
from common.files import write_json
from common.memory.process import child, fork
from common.memory.process.budget import format_size
from common.memory.report.record import ABOVE
from common.search.space import from_json, to_json
from common.search.tpe import Trial
from common.search.trials import FILE, Search, Terms, TrialLog, section

NAME = "imaging train"
WORK = ".training"
"""As in ``apps.imaging.training.loop``: the folder of what an unfinished training, or search, needs."""
UNIT = "eighths"


class Tune(argparse.Action):
    """``--tune N``: the number of trials; the command is then this module's."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Keep the number. ``--all-folds`` refuses it, whichever comes first."""
        namespace.tune = values
        if getattr(namespace, "run", None) is None:
            namespace.run = run


class _Ended(Exception):
    """A trial ended in a way that ends the search, with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


def run(args: argparse.Namespace) -> int:
    """Search, train with the best settings, and add the trials to the record."""
    if args.world.size > 1:
        raise UsageError("--tune does not run under torchrun; search with one process")
    if args.plan is not None:
        raise UsageError("--tune: a plan is of one training; leave --plan out")
    if args.dry_run:
        words = others(sys.argv[1:], "--tune")
        return interruptible(args, NAME, lambda args: run_child([*words, "-o", str(args.output)], out=True))
    return interruptible(args, NAME, _search_and_train)


def _search_and_train(args: argparse.Namespace) -> int:
    output: Path = args.output
    words = others(sys.argv[1:], "--tune", "--report", "--json", "--tensorboard")
    terms, first = _terms(args)
    notes = partial(say, args)
    decided = {name: value for name, value in vars(args).items() if name not in (*OF_EACH_RUN, "tune")}
    settings = json.loads(
        json.dumps(decided | {"space": to_json(terms.space)}, default=lambda path: str(path.resolve()))
    )
    try:
        log = TrialLog(output / WORK / FILE, settings, output=output, required=args.resume, say=notes)
    except OSError as error:
        raise BadInput(f"{output}: {error.strerror}", public="output folder") from None
    search = _Trials(terms, log, notes, words, first)
    try:
        best = search.search()
    except _Ended as ended:
        return ended.code
    except ArithmeticError as error:
        streams.say(f"{NAME}: {error}")
        return EXIT_UNFORESEEN
    events = ["--tensorboard"] if args.tensorboard else []
    code = run_child([*words, *_words(best.settings), *events, "-o", str(output)])
    if code == EXIT_OK:
        _finish(args, search.results(best))
    return code


def _words(settings: Mapping[str, Any]) -> list[str]:
    """The options that choose these settings."""
    chosen: list[str] = []
    for name, value in settings.items():
        chosen += [f"--{name}", str(value)] if name in ("patch", "layers") else ["--set", f"{name}={value}"]
    return chosen


def _terms(args: argparse.Namespace) -> tuple[Terms, dict[str, Any]]:
    """What is searched, and the command line's own settings; headers are read in a fork, which then ends."""
    options = args.command.request(args)
    if not options.validation_cases:
        raise UsageError("--tune: trials are compared in validations; leave out --set validation_cases=0")
    fixed = {pair.partition("=")[0] for pair in args.set}
    fixed |= {name for name in ("patch", "layers") if getattr(args, name) or args.recipe}

    def read() -> dict[str, Any]:
        from apps.imaging.training.request import TrainRequest
        from apps.imaging.training.tuning import space as spaces
        from apps.imaging.training.tuning.trial import METRIC, RUNGS, hide

        try:
            request = TrainRequest.of(options)
        except UsageError as error:
            return {"usage": str(error)}
        hide(request.data.training)
        space, first = spaces.of(request, fixed)
        return {"space": to_json(space), "first": first, "metric": METRIC, "rungs": RUNGS}

    found = fork.run(read)
    if "usage" in found:
        raise UsageError(found["usage"])
    if not found["space"]:
        raise UsageError("--tune: the command line fixes all that could be searched")
    space = from_json(found["space"])
    return Terms(space, args.tune, args.seed, found["metric"], found["rungs"], UNIT), found["first"]


class _Trials(Search):
    """Trials that are trainings of their own.

    Parameters
    ----------
    words
        The command line without what each training has of its own.
    first
        Settings of the first trial.
    """

    def __init__(self, terms: Terms, log: TrialLog, notes: Any, words: Sequence[str], first: Mapping[str, Any]) -> None:
        super().__init__(terms, log, notes)
        self.words, self._first = words, dict(first)

    def first(self) -> dict[str, Any]:
        """Settings of the command line."""
        return self._first

    def attempt(self, number: int, settings: Mapping[str, Any]) -> Trial:
        """Train a trial, and read its record.

        Raises
        ------
        _Ended
            It ended as no other trial could end better: its input is bad, or something unforeseen happened.
        """
        folder = self.log.path.parent / f"trial-{number + 1}"
        chosen = ["-o", str(folder), "--trial", str(self.log.path), "--json", "-q"]
        done = child.run_command("apps.imaging", [*self.words, *_words(settings), *chosen])
        code, trial = done.exit.status, Trial(number, settings)
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        record = json.loads(done.stdout) if done.stdout.startswith(b"{") else {}
        failure = record.get("error", {}).get("kind")
        if code == EXIT_OK:
            results = record["results"]
            trial.scores = {int(eighths): score for eighths, score in results["scores"].items()}
            trial.state = "stopped" if results["stopped"] else "done"
        elif code == EXIT_DOES_NOT_FIT:
            needed = record.get("smallest_feasible_bytes")
            trial.state, trial.why = "skipped", f"needs {format_size(needed)}" if needed else "does not fit"
        elif failure == "ArithmeticError":
            trial.state, trial.why = "failed", "the numbers are not finite"
        elif failure in ("out of memory", ABOVE):
            trial.state, trial.why = "skipped", str(failure)
        else:
            for line in done.stderr.decode("utf-8", "replace").splitlines():
                streams.say(line)
            raise _Ended(code if code > 0 else EXIT_UNFORESEEN)
        shutil.rmtree(folder, ignore_errors=True)
        return trial


def _finish(args: argparse.Namespace, tuning: Mapping[str, Any]) -> None:
    """Add the trials to the record of the training, and draw its report."""
    path = args.output / "run.json"
    written = json.loads(path.read_text("utf-8"))
    written["results"]["tuning"] = tuning
    write_json(path, written)
    if args.report:
        record_file.write_report(path, written, section(written, path.parent))
    if args.json:
        streams.write_json(written)
