"""``recsys train --tune N``: try other settings under the same ceiling, and compare them on hidden training items.

Each trial is planned first, and skipped if it does not fit. ``common.search`` has what is not of recommenders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from apps.recsys.training.fit_factors import IterationCallback
from common.errors import DoesNotFit
from common.memory.costs.store import CostStore
from common.memory.footprint import Footprint, Term
from common.memory.plan import planner
from common.memory.plan.plan import Plan
from common.memory.process import glibc, guard
from common.search import trials
from common.search.tpe import Trial
from common.search.trials import Terms, TrialLog, TrialStopped, judge, rungs, short

if TYPE_CHECKING:
    from apps.recsys.planning.train import TrainWorkload
    from common.cli.session import Session

METRIC = "ndcg@10"
"""The metric by which trials are compared."""
FITTING = ("arrange", "fit", "validate")
"""Phases of a training that a trial goes through."""

Fit = Callable[["TrainWorkload", "TrialSession", IterationCallback], object]
"""Trains a workload and calls back after each iteration."""


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


def searched_settings(work: TrainWorkload) -> dict[str, Any]:
    """The values that a workload has for the hyper-parameters in its space."""
    model = work.request.model
    return {name: model.factors if name == "factors" else model.hyper[name] for name in work.request.space}


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best settings of a search."""

    work: TrainWorkload
    """The training with the best settings."""
    plan: Plan
    """Its plan, including the phases of the search."""
    results: Mapping[str, Any]
    """Entry ``tuning`` of the record's results."""


class Search(trials.Search):
    """Runs trials in this process.

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
        request = work.request
        steps = rungs(request.model.iterations)
        super().__init__(Terms(request.space, request.trials, request.seed, METRIC, steps), log, session.say)
        self.work, self.session, self.fit = work, session, fit
        self.largest: tuple[Term, ...] = ()
        """Terms of the trial that needed the most memory."""

    def run(self) -> SearchResult:
        """Run the remaining trials; returns the best settings and a plan for them.

        Raises
        ------
        ArithmeticError
            No trial finished.
        """
        best = self.search()
        work = self.work.with_settings(best.settings)
        plan = planner.plan(work, self.session.budget, CostStore(walled=True, measures=False))
        return SearchResult(work, self._including(plan), self.results(best))

    def first(self) -> dict[str, Any]:
        """Settings of the command line."""
        return searched_settings(self.work)

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """A phase of the command."""
        context: AbstractContextManager[Any] = self.session.phase(name)
        return context

    def attempt(self, number: int, settings: Mapping[str, Any]) -> Trial:
        """Plan a trial, and fit it if it fits."""
        trial = Trial(number, settings)
        self._try(trial)
        glibc.trim()
        return trial

    def _try(self, trial: Trial) -> None:
        import numpy as np

        work = self.work.with_settings(trial.settings)
        try:
            plan = planner.plan(work, self.session.budget, CostStore(walled=True, measures=False))
        except DoesNotFit as refusal:
            trial.state, trial.why = "skipped", short(refusal)
            return
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

    def _callback(self, trial: Trial) -> IterationCallback:
        steps = self.terms.rungs

        def after_iteration(iterations: int, evaluate: Callable[[], Mapping[str, float]]) -> None:
            if iterations in steps:
                judge(trial, iterations, float(evaluate()[METRIC]), self.log.trials, last=steps[-1])

        return after_iteration

    def _including(self, plan: Plan) -> Plan:
        """The plan with the memory of the search as its phase ``tune``."""
        spent = [replace(term, phases=("tune",)) for term in self.largest]
        return replace(plan, footprint=Footprint.of([*plan.footprint.terms, *spent]))


def _heaviest(plan: Plan) -> tuple[Term, ...]:
    """The terms of a trial's largest phase."""
    sums = plan.footprint.phases()
    phase = max((name for name in sums if name in FITTING), key=sums.__getitem__)
    return tuple(term for term in plan.footprint.terms if phase in term.phases)


def _total(terms: Sequence[Term]) -> int:
    return sum(term.bytes for term in terms)
