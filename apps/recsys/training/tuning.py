"""``recsys train --tune N``: other settings tried under the same ceiling, judged on hidden items of the training data.

The first trial has the settings of the command line. Each is planned before it is tried: one that does not fit is
skipped. Those that fall behind on the way are stopped by asynchronous successive halving (Li et al., "A system for
massively parallel hyperparameter tuning", 2020): of those that reached a rung the best half goes on. What a trial
reached is a line in a file as soon as it ends, so that a search that was killed goes on with the next one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.models import search_space
from apps.recsys.training import tpe
from apps.recsys.training.fit_factors import Watch
from apps.recsys.training.tpe import Trial
from common.errors import DoesNotFit
from common.memory.costs.store import CostStore
from common.memory.footprint import Footprint, Term
from common.memory.plan import planner
from common.memory.plan.plan import Plan
from common.memory.process import fork, glibc, guard
from common.memory.process.budget import format_size

if TYPE_CHECKING:
    from apps.recsys.planning.train import TrainWorkload
    from common.cli.session import Session

FILE = "tuning.jsonl"
"""In the model folder's ``.training``: a line of what is searched, then a line for each trial."""
METRIC = "ndcg@10"
"""What decides."""
REDUCTION = 2
"""A rung has twice the iterations of the one below it, and lets half pass."""
RUNGS = 3
FITTING = ("arrange", "fit", "validate")
"""Phases of a training that a trial goes through."""

Fit = Callable[["TrainWorkload", "TrialSession", Watch], object]
"""Trains with some settings, telling what watches after each iteration."""


class Stopped(Exception):
    """A trial that is not worth going on with."""


class TrialSession:
    """What a training needs of ``common.cli.session.Session``, quietly: all trials are the one phase ``tune``."""

    def __init__(self, session: Session, plan: Plan) -> None:
        self._session, self.plan = session, plan
        self.threads, self.seed, self.budget = session.threads, session.seed, session.budget

    @property
    def stopping(self) -> bool:
        """Whether somebody asked the command to stop."""
        return self._session.stopping

    def phase(self, name: str) -> Any:
        """Not measured on its own."""
        return nullcontext()

    def say(self, message: str) -> None:
        """A trial is told in one line, when it has ended."""

    def progress(self, *, total: float | None, unit: str, label: str) -> Any:
        """A bar that is not drawn."""
        from tqdm import tqdm

        return tqdm(disable=True)


class Notebook:
    """The file of trials.

    Parameters
    ----------
    path
        The file; where it is of another search it is begun anew.
    about
        What is searched, on what data, from which seed.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        head = json.dumps(about, sort_keys=True)
        self.trials = list(self._read(head))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written again without what a kill left half-written.
        with path.open("w", encoding="utf-8") as stream:
            stream.writelines(line + "\n" for line in (head, *map(_line, self.trials)))

    def _read(self, head: str) -> Iterator[Trial]:
        if not self.path.is_file():
            return
        first, *lines = self.path.read_text("utf-8").split("\n")
        for line in lines[:-1] if first == head else ():
            row = json.loads(line)
            yield Trial(**{**row, "scores": {int(done): score for done, score in row["scores"].items()}})

    def add(self, trial: Trial) -> None:
        """Keep a trial that has ended."""
        self.trials.append(trial)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(_line(trial) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def _line(trial: Trial) -> str:
    return json.dumps(asdict(trial), sort_keys=True)


def present(work: TrainWorkload) -> dict[str, Any]:
    """Its settings, of those that are searched."""
    return {name: work.factors if name == "factors" else work.hyper[name] for name in work.space}


def changed(work: TrainWorkload, settings: Mapping[str, Any]) -> TrainWorkload:
    """The same training with other settings."""
    factors = int(settings.get("factors", work.factors))
    hyper = {**work.hyper, **{name: value for name, value in settings.items() if name != "factors"}}
    recipe = work.recipe
    if recipe is not None:
        recipe = replace(recipe, **{name: value for name, value in settings.items() if hasattr(recipe, name)})
    return replace(work, factors=factors, hyper=hyper, recipe=recipe)


def rungs(iterations: int) -> list[int]:
    """After how many iterations a trial is looked at, the last time at its end."""
    return sorted({max(1, round(iterations / REDUCTION**below)) for below in range(RUNGS)})


def promising(score: float, others: Sequence[float]) -> bool:
    """Whether a score is among the best half of all that were reached at this rung; a first one is."""
    better = sum(other > score for other in others)
    return better < max(1, (len(others) + 1) // REDUCTION)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found."""

    work: TrainWorkload
    """With the best settings."""
    plan: Plan
    """For it, and what the search itself took."""
    results: Mapping[str, Any]
    """For the record."""


class Search:
    """Trials one after the other.

    Parameters
    ----------
    work
        With the command line's settings, and the space to search (``TrainWorkload.space``).
    fit
        Trains.
    """

    def __init__(self, work: TrainWorkload, session: Session, notebook: Notebook, fit: Fit) -> None:
        self.work, self.session, self.notebook, self.fit = work, session, notebook, fit
        self.rungs = rungs(int(work.hyper["epochs" if work.kind == "embedding" else "iterations"]))
        self.largest: tuple[Term, ...] = ()
        """Terms of the trial that needed most."""

    def run(self) -> Outcome:
        """Try until there are enough; the best settings and a plan for them."""
        session, trials = self.session, self.notebook.trials
        if trials:
            session.say(f"continuing after {len(trials)} trials")
        for number in range(len(trials), self.work.trials):
            with session.phase("suggest"):
                settings = self._settings(number)
            with session.phase("tune"):
                trial = self._try(number, settings)
                glibc.trim()
            self.notebook.add(trial)
            session.say(self._told(trial))
        best = self.best()
        session.say(f"best: trial {best.number + 1}, {METRIC} {best.reached:.4f}: {_pairs(best.settings)}")
        work = changed(self.work, best.settings)
        plan = planner.plan(work, session.budget, CostStore(walled=True))
        return Outcome(work, self._including(plan), self._results(best))

    def best(self) -> Trial:
        """Of those that came to their end, the one that reached most, the earliest of equals.

        Raises
        ------
        ArithmeticError
            If none did.
        """
        done = [trial for trial in self.notebook.trials if trial.state == "done"]
        if not done:
            raise ArithmeticError("no trial came to its end; --set other settings to begin with")
        return max(done, key=lambda trial: (trial.reached, -trial.number))

    def _settings(self, number: int) -> dict[str, Any]:
        if not number:
            return present(self.work)
        trials = list(self.notebook.trials)
        return fork.run(lambda: tpe.ask(self.work.space, trials, seed=self.session.seed))

    def _try(self, number: int, settings: Mapping[str, Any]) -> Trial:
        import numpy as np

        trial = Trial(number, settings)
        work = changed(self.work, settings)
        try:
            plan = planner.plan(work, self.session.budget, CostStore(walled=True))
        except DoesNotFit as refusal:
            trial.state, trial.why = "skipped", _short(refusal)
            return trial
        self.largest = max(self.largest, _heaviest(plan), key=_total)
        try:
            self.fit(work, TrialSession(self.session, plan), self._watch(trial))
        except Stopped:
            trial.state = "stopped"
        except (ArithmeticError, np.linalg.LinAlgError) as error:
            trial.state, trial.why = "failed", str(error)
        except (MemoryError, RuntimeError) as error:
            if not guard.is_out_of_memory(error):
                raise
            trial.state, trial.why = "skipped", "an allocation failed"
        return trial

    def _watch(self, trial: Trial) -> Watch:
        def watch(done: int, measure: Callable[[], Mapping[str, float]]) -> None:
            if done not in self.rungs:
                return
            score = trial.scores[done] = float(measure()[METRIC])
            others = [other.scores[done] for other in self.notebook.trials if done in other.scores]
            if done < self.rungs[-1] and not promising(score, others):
                raise Stopped

        return watch

    def _told(self, trial: Trial) -> str:
        ended = {
            "done": f"{METRIC} {trial.reached:.4f}" if trial.scores else "",
            "stopped": f"stopped after {max(trial.scores, default=0)} of {self.rungs[-1]} iterations",
        }
        how = ended.get(trial.state, f"{trial.state}: {trial.why}")
        return f"trial {trial.number + 1} of {self.work.trials}: {_pairs(trial.settings)}: {how}"

    def _including(self, plan: Plan) -> Plan:
        """The plan with what the search took before it."""
        spent = [replace(term, phases=("tune",)) for term in self.largest]
        return replace(plan, footprint=Footprint.of([*plan.footprint.terms, *spent]))

    def _results(self, best: Trial) -> dict[str, Any]:
        first = self.notebook.trials[0]
        return {
            "metric": METRIC,
            "rungs": self.rungs,
            "space": search_space.to_json(self.work.space),
            "best": best.number,
            "reached": best.reached,
            "gain": best.reached / first.reached if first.scores else None,
            "trials": [asdict(trial) for trial in self.notebook.trials],
        }


def _heaviest(plan: Plan) -> tuple[Term, ...]:
    """The terms of the phase that decides what a trial takes."""
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
    """The search as a table of the report."""
    from common.memory.report import page

    found = written.get("results", {}).get("tuning")
    if not found:
        return
    names, rows = list(found["space"]), []
    for trial in found["trials"]:
        scores = trial["scores"]
        reached = f"{scores[max(scores, key=int)]:.4f}" if scores else ""
        ended = "best" if trial["number"] == found["best"] else f"{trial['state']} {trial['why']}"
        values = [_shown(trial["settings"][name]) for name in names]
        rows.append([escape(cell) for cell in (str(trial["number"] + 1), *values, reached, ended)])
    yield page.section("Settings that were tried", page.table(("Trial", *names, found["metric"], "Ended"), rows))
