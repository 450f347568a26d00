"""``recsys train --tune N``: try other settings under the same ceiling, and compare them on hidden training items.

The first trial has the settings of the command line. Each trial is planned first, and skipped if it does not fit.
Trials that fall behind are stopped by asynchronous successive halving (Li et al., "A system for massively parallel
hyperparameter tuning", 2020): at each rung only the best half of the trials that reached it continues. The result of
each trial is a line in a file as soon as it ends, so a search that was killed continues with the next trial.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.models import search_space
from apps.recsys.training import tpe
from apps.recsys.training.fit_factors import IterationCallback
from apps.recsys.training.tpe import Trial
from common.errors import DoesNotFit
from common.memory.costs.store import CostStore
from common.memory.footprint import Footprint, Term
from common.memory.plan import planner
from common.memory.plan.plan import Plan
from common.memory.process import fork, glibc, guard
from common.memory.process.budget import format_size
from common.training.resume import resume

if TYPE_CHECKING:
    from apps.recsys.planning.train import TrainWorkload
    from common.cli.session import Session

FILE = "tuning.jsonl"
"""In the model folder's ``.training``: a line with the search's settings, then a line per trial."""
METRIC = "ndcg@10"
"""The metric by which trials are compared."""
REDUCTION = 2
"""Ratio of the iterations of successive rungs; one in so many trials passes a rung."""
RUNGS = 3
"""Number of rungs."""
FITTING = ("arrange", "fit", "validate")
"""Phases of a training that a trial goes through."""

Fit = Callable[["TrainWorkload", "TrialSession", IterationCallback], object]
"""Trains a workload and calls back after each iteration."""


class TrialStopped(Exception):
    """Raised to end a trial that is worse than half of the others."""


class TrialSession:
    """A ``TrainingSession`` for trials: it prints nothing, and all trials together are the phase ``tune``."""

    def __init__(self, session: Session, plan: Plan) -> None:
        self._session, self.plan = session, plan
        self.threads, self.budget, self.group = session.threads, session.budget, session.group

    @property
    def stopping(self) -> bool:
        """True once a signal asked the command to stop."""
        return self._session.stopping

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """A block that is not measured on its own."""
        return nullcontext()

    def say(self, message: str) -> None:
        """Print nothing: the search prints one line per trial."""

    def progress(self, *, total: float | None, unit: str, label: str) -> Any:
        """A progress bar that is not drawn."""
        from tqdm import tqdm

        return tqdm(disable=True)


class TrialLog:
    """The file of a search's trials. The search is continued if the file has the same settings.

    Parameters
    ----------
    path
        The file.
    settings
        All that decides the search (``resume_settings``), and its space.
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
            load=_read_trials,
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


def _read_trials(path: Path) -> list[Trial]:
    """The trials in a file, but for a last line that is incomplete."""
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n")[1:-1]]
    return [Trial(**{**row, "scores": {int(done): score for done, score in row["scores"].items()}}) for row in rows]


def _line(trial: Trial) -> str:
    return json.dumps(asdict(trial), sort_keys=True)


def searched_settings(work: TrainWorkload) -> dict[str, Any]:
    """The values that a workload has for the hyper-parameters in its space."""
    model = work.request.model
    return {name: model.factors if name == "factors" else model.hyper[name] for name in work.request.space}


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


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best settings of a search."""

    work: TrainWorkload
    """The training with the best settings."""
    plan: Plan
    """Its plan, including the phases of the search."""
    results: Mapping[str, Any]
    """Entry ``tuning`` of the record's results."""


class Search:
    """Runs trials one after the other.

    Parameters
    ----------
    work
        The training with the settings of the command line, and the space to search.
    session
        Session of the command.
    log
        The trials so far.
    fit
        Trains one trial.
    """

    def __init__(self, work: TrainWorkload, session: Session, log: TrialLog, fit: Fit) -> None:
        self.work, self.session, self.log, self.fit = work, session, log, fit
        self.rungs = rungs(work.request.model.iterations)
        self.largest: tuple[Term, ...] = ()
        """Terms of the trial that needed the most memory."""

    def run(self) -> SearchResult:
        """Run the remaining trials; returns the best settings and a plan for them.

        Raises
        ------
        ArithmeticError
            No trial finished.
        """
        session, trials = self.session, self.log.trials
        for number in range(len(trials), self.work.request.trials):
            with session.phase("suggest"):
                settings = self._settings(number)
            with session.phase("tune"):
                trial = self._try(number, settings)
                glibc.trim()
            self.log.add(trial)
            session.say(self._described(trial))
        best = self.best()
        session.say(f"best: trial {best.number + 1}, {METRIC} {best.reached:.4f}: {_pairs(best.settings)}")
        work = self.work.with_settings(best.settings)
        plan = planner.plan(work, session.budget, CostStore(walled=True, measures=False))
        return SearchResult(work, self._including(plan), self._results(best))

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
            return searched_settings(self.work)
        trials = list(self.log.trials)
        return fork.run(lambda: tpe.ask(self.work.request.space, trials, seed=self.work.request.seed))

    def _try(self, number: int, settings: Mapping[str, Any]) -> Trial:
        import numpy as np

        trial = Trial(number, settings)
        work = self.work.with_settings(settings)
        try:
            plan = planner.plan(work, self.session.budget, CostStore(walled=True, measures=False))
        except DoesNotFit as refusal:
            trial.state, trial.why = "skipped", _short(refusal)
            return trial
        self.largest = max(self.largest, _heaviest(plan), key=_total)
        try:
            self.fit(work, TrialSession(self.session, plan), self._callback(trial))
        except TrialStopped:
            trial.state = "stopped"
        except (ArithmeticError, np.linalg.LinAlgError) as error:
            trial.state, trial.why = "failed", str(error)
        except (MemoryError, RuntimeError) as error:
            if not guard.is_out_of_memory(error):
                raise
            trial.state, trial.why = "skipped", "an allocation failed"
        return trial

    def _callback(self, trial: Trial) -> IterationCallback:
        def after_iteration(iterations: int, evaluate: Callable[[], Mapping[str, float]]) -> None:
            if iterations not in self.rungs:
                return
            score = trial.scores[iterations] = float(evaluate()[METRIC])
            others = [other.scores[iterations] for other in self.log.trials if iterations in other.scores]
            if iterations < self.rungs[-1] and not promising(score, others):
                raise TrialStopped

        return after_iteration

    def _described(self, trial: Trial) -> str:
        ended = {
            "done": f"{METRIC} {trial.reached:.4f}" if trial.scores else "",
            "stopped": f"stopped after {max(trial.scores, default=0)} of {self.rungs[-1]} iterations",
        }
        how = ended.get(trial.state, f"{trial.state}: {trial.why}")
        return f"trial {trial.number + 1} of {self.work.request.trials}: {_pairs(trial.settings)}: {how}"

    def _including(self, plan: Plan) -> Plan:
        """The plan with the memory of the search as its phase ``tune``."""
        spent = [replace(term, phases=("tune",)) for term in self.largest]
        return replace(plan, footprint=Footprint.of([*plan.footprint.terms, *spent]))

    def _results(self, best: Trial) -> dict[str, Any]:
        first = self.log.trials[0]
        return {
            "metric": METRIC,
            "rungs": self.rungs,
            "space": search_space.to_json(self.work.request.space),
            "best": best.number,
            "reached": best.reached,
            "gain": best.reached / first.reached if first.scores else None,
            "trials": [asdict(trial) for trial in self.log.trials],
        }


def _heaviest(plan: Plan) -> tuple[Term, ...]:
    """The terms of a trial's largest phase."""
    sums = plan.footprint.phases()
    phase = max((name for name in sums if name in FITTING), key=sums.__getitem__)
    return tuple(term for term in plan.footprint.terms if phase in term.phases)


def _total(terms: Sequence[Term]) -> int:
    return sum(term.bytes for term in terms)


def _short(refusal: DoesNotFit) -> str:
    needed = refusal.smallest_feasible_bytes
    return f"needs {format_size(needed)}" if needed else "; ".join(refusal.reasons)


def _pairs(settings: Mapping[str, Any]) -> str:
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
