"""Try settings one after the other under the same ceiling, and compare them on hidden data: ``train --tune N``.

The first trial has the settings of the command line. Trials that fall behind are stopped by asynchronous successive
halving (Li et al., "A system for massively parallel hyperparameter tuning", 2020): at each rung only the best half of
the trials that reached it continues. The result of each trial is a line in a file as soon as it ends, so a search that
was killed continues with the next trial.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import DoesNotFit
from common.memory.process import fork
from common.memory.process.budget import format_size
from common.search import tpe
from common.search.space import Space, to_json
from common.search.tpe import Trial
from common.training.resume import resume

FILE = "tuning.jsonl"
"""In the model folder's ``.training``: a line with the search's settings, then a line per trial."""
REDUCTION = 2
"""Ratio of the iterations of successive rungs; one in so many trials passes a rung."""
RUNGS = 3
"""Number of rungs."""


class TrialStopped(Exception):
    """Raised to end a trial that is worse than half of the others."""


class TrialLog:
    """The file of a search's trials. The search is continued if the file has the same settings.

    Parameters
    ----------
    path
        The file.
    settings
        All that decides the search, and its space, as values that JSON can represent.
    output
        The model folder, for error messages.
    required
        True if there must be a search to continue.
    say
        Prints one line for the user.

    Raises
    ------
    UsageError, BadInput
        ``required`` is set, and there is no file of this search.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        output: Path,
        required: bool = False,
        say: Callable[[str], None],
    ) -> None:
        self.path = path
        continued = resume(
            path,
            settings,
            read_settings=_read_settings,
            load=read_trials,
            progress=lambda trials: f"after {len(trials)} trials",
            output=output,
            required=required,
            say=say,
        )
        self.trials = continued or []
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written again, without a line that a killed run left incomplete.
        with path.open("w", encoding="utf-8") as stream:
            head = json.dumps(settings, sort_keys=True)
            stream.writelines(line + "\n" for line in (head, *map(_line, self.trials)))

    def add(self, trial: Trial) -> None:
        """Append a trial that has ended."""
        self.trials.append(trial)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(_line(trial) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def _read_settings(path: Path) -> Mapping[str, Any] | None:
    with path.open(encoding="utf-8") as stream, suppress(ValueError):
        settings: Mapping[str, Any] = json.loads(stream.readline())
        return settings
    return None


def read_trials(path: Path) -> list[Trial]:
    """The trials in a file, but for a last line that is incomplete."""
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n")[1:-1]]
    return [Trial(**{**row, "scores": {int(done): score for done, score in row["scores"].items()}}) for row in rows]


def _line(trial: Trial) -> str:
    return json.dumps(asdict(trial), sort_keys=True)


def rungs(iterations: int) -> list[int]:
    """Numbers of iterations after which a trial is evaluated.

    Examples
    --------
    >>> rungs(40)
    [10, 20, 40]
    """
    return sorted({max(1, round(iterations / REDUCTION**below)) for below in range(RUNGS)})


def promising(score: float, others: Sequence[float]) -> bool:
    """True if a score is in the best half of all scores at its rung, or the first one there."""
    better = sum(other > score for other in others)
    return better < max(1, (len(others) + 1) // REDUCTION)


def judge(trial: Trial, done: int, score: float, others: Sequence[Trial], *, last: int) -> None:
    """Note a trial's score at a rung.

    Parameters
    ----------
    done
        The rung, as a number of iterations; ``last`` is that of the last one.
    others
        Trials that have ended.

    Raises
    ------
    TrialStopped
        The trial is worse than half of the others at this rung.
    """
    trial.scores[done] = score
    reached = [other.scores[done] for other in others if done in other.scores]
    if done < last and not promising(score, reached):
        raise TrialStopped


@dataclass(frozen=True, slots=True)
class Terms:
    """What a search varies, and how its trials are compared."""

    space: Space
    trials: int
    seed: int
    metric: str
    rungs: Sequence[int]
    unit: str = "iterations"
    """What rungs count."""


class Search(ABC):
    """Runs trials one after the other.

    Parameters
    ----------
    terms
        What is searched.
    log
        The trials so far.
    say
        Prints one line for the user.
    """

    def __init__(self, terms: Terms, log: TrialLog, say: Callable[[str], None]) -> None:
        self.terms, self.log, self.say = terms, log, say

    @abstractmethod
    def first(self) -> dict[str, Any]:
        """Settings of the first trial: those of the command line."""

    @abstractmethod
    def attempt(self, number: int, settings: Mapping[str, Any]) -> Trial:
        """Run one trial to its end, however it ends."""

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """Context of proposing settings (``suggest``), and of a trial (``tune``)."""
        return nullcontext()

    def search(self) -> Trial:
        """Run the remaining trials; returns the best.

        Raises
        ------
        ArithmeticError
            No trial finished.
        """
        for number in range(len(self.log.trials), self.terms.trials):
            with self.phase("suggest"):
                settings = self._settings(number)
            with self.phase("tune"):
                trial = self.attempt(number, settings)
            self.log.add(trial)
            self.say(self._described(trial))
        best = self.best()
        chosen = {name: best.settings[name] for name in self.terms.space}
        self.say(f"best: trial {best.number + 1}, {self.terms.metric} {best.reached:.4f}: {pairs(chosen)}")
        return best

    def best(self) -> Trial:
        """The finished trial with the best score, the first one of equals.

        Raises
        ------
        ArithmeticError
            No trial finished.
        """
        done = [trial for trial in self.log.trials if trial.state == "done"]
        if not done:
            raise ArithmeticError("no trial finished; start from other settings with --set")
        return max(done, key=lambda trial: (trial.reached, -trial.number))

    def _settings(self, number: int) -> dict[str, Any]:
        if not number:
            return self.first()
        trials = list(self.log.trials)
        return fork.run(lambda: tpe.ask(self.terms.space, trials, seed=self.terms.seed))

    def _described(self, trial: Trial) -> str:
        reached, last = max(trial.scores, default=0), self.terms.rungs[-1]
        ended = {
            "done": f"{self.terms.metric} {trial.reached:.4f}" if trial.scores else "",
            "stopped": f"stopped after {reached} of {last} {self.terms.unit}",
        }
        how = ended.get(trial.state, f"{trial.state}: {trial.why}")
        return f"trial {trial.number + 1} of {self.terms.trials}: {pairs(trial.settings)}: {how}"

    def results(self, best: Trial) -> dict[str, Any]:
        """Entry ``tuning`` of the record's results."""
        first = self.log.trials[0]
        return {
            "metric": self.terms.metric,
            "rungs": list(self.terms.rungs),
            "space": to_json(self.terms.space),
            "best": best.number,
            "reached": best.reached,
            "gain": best.reached / first.reached if first.scores and first.reached else None,
            "trials": [asdict(trial) for trial in self.log.trials],
        }


def short(refusal: DoesNotFit) -> str:
    """Why a trial is skipped."""
    needed = refusal.smallest_feasible_bytes
    return f"needs {format_size(needed)}" if needed else "; ".join(refusal.reasons)


def pairs(settings: Mapping[str, Any]) -> str:
    """Settings as they are printed."""
    return " ".join(f"{name}={_shown(value)}" for name, value in settings.items())


def _shown(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def section(written: Mapping[str, Any], directory: Path) -> Iterator[str]:
    """A section of the report: the trials as a table."""
    from html import escape

    from common.memory.report import page

    search = written.get("results", {}).get("tuning")
    if not search:
        return
    names, rows = list(search["space"]), []
    for trial in search["trials"]:
        scores = trial["scores"]
        reached = f"{scores[max(scores, key=int)]:.4f}" if scores else ""
        ended = "best" if trial["number"] == search["best"] else f"{trial['state']} {trial['why']}"
        values = [_shown(trial["settings"][name]) for name in names]
        rows.append([escape(cell) for cell in (str(trial["number"] + 1), *values, reached, ended)])
    yield page.section("Settings that were tried", page.table(("Trial", *names, search["metric"], "Ended"), rows))
