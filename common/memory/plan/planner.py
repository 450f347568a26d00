"""Choose the fastest setting that fits under the ceiling.

A workload lists the settings that the command line leaves open, predicts a setting's time, names the probes that its
price needs, and computes its footprint from their results. The planner prices settings in the order of predicted time,
so that the first one that fits is the fastest. If none fits, it finds the smallest ceiling that is enough.
``common.memory.plan.explain`` renders plans and refusals as text.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from typing import Any, Protocol, runtime_checkable

from common.errors import DoesNotFit
from common.memory.costs.probes import Costs, Probe, ProbeFailed
from common.memory.costs.store import CostStore
from common.memory.footprint import ALL, Footprint, Term
from common.memory.plan import explain
from common.memory.plan.plan import Plan, Rejected, Setting
from common.memory.process.budget import MemoryBudget

ESTIMATE_ERROR = 0.025
"""Error of a whole process's predicted peak if its largest part was estimated (measured 1.3 % over to 2.1 % under)."""
REMEDIES_TRIED = 4
"""Largest number of changes of the command line that a refusal prices; each may take seconds to measure."""
REMEDIES_NAMED = 2
"""Largest number of changes that a refusal names."""


class Workload(Protocol):
    """The work of a command that allocates; the applications' are in ``apps/<app>/planning/``."""

    @property
    def name(self) -> str:
        """``"imaging train"``"""
        ...

    def settings(self) -> Iterator[Setting]:
        """Iterate over the settings that the command line leaves open; those that change quality last."""
        ...

    def probes(self, setting: Setting, /) -> Sequence[Probe]:
        """Return the probes whose results ``footprint`` needs."""
        ...

    def footprint(self, setting: Setting, costs: Costs, /) -> Footprint:
        """Compute the footprint of a setting from the results of its probes, by arithmetic alone."""
        ...

    def seconds(self, setting: Setting, /) -> float:
        """Return the predicted time, in any unit."""
        ...


@runtime_checkable
class HasMonotoneKnobs(Protocol):
    """A workload with knobs along which a slower setting never needs more bytes; the planner bisects these."""

    @property
    def monotone_knobs(self) -> Sequence[str]:
        """Names of these knobs."""
        ...


@runtime_checkable
class Estimated(Protocol):
    """A workload that can estimate a footprint if a probe does not fit under the ceiling."""

    def estimate(self, setting: Setting, costs: CostStore, ceiling: int) -> Footprint | None:
        """Estimate the footprint from smaller probes; ``None`` if these do not fit either."""
        ...


@runtime_checkable
class SuggestsChanges(Protocol):
    """A workload that knows changes of its command line that need less memory."""

    def remedies(self) -> Iterator[tuple[str, Workload]]:
        """Iterate over changes (``"--factors 32"``) and the workloads they make, the smallest loss first."""
        ...


@runtime_checkable
class HasLesserSettings(Protocol):
    """A workload with settings that give a lesser result, which are taken only where no better one fits."""

    def lesser(self, setting: Setting) -> float:
        """Return how far a setting's result falls behind the best one's, in any unit; 0: not at all."""
        ...


@runtime_checkable
class PlansLater(Protocol):
    """A workload that plans more while it runs, when its memory leaves no room to measure in."""

    def planned_later(self) -> Iterator[Workload]:
        """Iterate over what it may plan."""
        ...


@runtime_checkable
class HasChoices(Protocol):
    """A workload that may be done in several sizes, of which the best that fits is wanted, however slow."""

    def choices(self) -> Sequence[tuple[Workload, Sequence[Setting]]]:
        """Return the sizes from the best to the smallest, each with the settings that need least; at least one."""
        ...


def ordered(workload: Workload) -> list[tuple[float, float, Setting]]:
    """Return the settings in the order in which they are tried, each after its lesser result and its time."""
    if isinstance(workload, HasLesserSettings):
        places = [(workload.lesser(setting), workload.seconds(setting), setting) for setting in workload.settings()]
    else:
        places = [(0.0, workload.seconds(setting), setting) for setting in workload.settings()]
    return sorted(places, key=itemgetter(0, 1))


def measure_ahead(workload: Workload, budget: MemoryBudget, costs: CostStore) -> None:
    """Measure what a workload will plan while it runs, as far as that fits under the ceiling."""
    if isinstance(workload, PlansLater):
        searches = [_Search(other, budget.host_bytes, costs) for other in workload.planned_later()]
        firsts = [(search.workload, search.first) for search in searches if search.first is not None]
        _measure_together(firsts, budget.host_bytes, costs)
        for search in searches:
            search.fastest()


def price(workload: Workload, setting: Setting, costs: CostStore, *, ceiling: int | None) -> Plan:
    """Price one setting, measuring missing costs first.

    Parameters
    ----------
    ceiling
        As for ``CostStore.collect``.

    Raises
    ------
    ProbeFailed
        If a probe could not be measured under the ceiling.
    """
    results = costs.collect(workload.probes(setting), ceiling=ceiling)
    return Plan(workload.name, tuple(sorted(setting.items())), workload.footprint(setting, results))


def best_choice(workload: Workload, budget: MemoryBudget, costs: CostStore) -> Workload:
    """Choose the best size of a workload that fits under the ceiling, by bisection; else the smallest."""
    choices = workload.choices() if isinstance(workload, HasChoices) else [(workload, ())]

    def fits(index: int) -> bool:
        offers = [(choices[index][0], setting) for setting in choices[index][1]]
        _measure_together(offers, budget.host_bytes, costs)
        plans = [_priced_or_estimated(*offer, costs, budget.host_bytes) for offer in offers]
        return any(plan is not None and plan.needed_bytes <= budget.host_bytes for plan in plans)

    if len(choices) == 1 or fits(0):
        return choices[0][0]
    return choices[bisect_left(range(len(choices) - 1), True, lo=1, key=fits)][0]


def plan(workload: Workload, budget: MemoryBudget, costs: CostStore, *, ahead: bool = False) -> Plan:
    """Choose the fastest setting whose predicted peak plus reserve is within the ceiling.

    Parameters
    ----------
    ahead
        True to measure what the work will plan later as well (``measure_ahead``).

    Raises
    ------
    DoesNotFit
        If no setting does; with the plan that needs least and changes that would fit.
    """
    search = _Search(workload, budget.host_bytes, costs)
    chosen = search.fastest()
    if ahead:
        measure_ahead(workload, budget, costs)
    if chosen is not None:
        return chosen
    smallest = search.smallest()
    if smallest is not None and smallest.needed_bytes <= budget.host_bytes:
        return smallest  # it runs where its probes did not fit
    raise DoesNotFit(
        ceiling=budget.host_bytes,
        smallest=smallest,
        reasons=search.failures,
        remedies=_remedies(workload, budget, costs, smallest),
    )


def leanest(workload: Workload, budget: MemoryBudget, costs: CostStore, *, ahead: bool = False) -> Plan:
    """Choose the setting that needs least, whether it fits or not; otherwise as ``plan``.

    Raises
    ------
    DoesNotFit
        If nothing could be priced.
    """
    search = _Search(workload, budget.host_bytes, costs)
    smallest = search.smallest()
    if ahead:
        measure_ahead(workload, budget, costs)
    if smallest is None:
        raise DoesNotFit(ceiling=budget.host_bytes, reasons=search.failures)
    return smallest


class _Search:
    """One pass over the settings that prices as few as possible, since a price may take seconds to measure."""

    def __init__(self, workload: Workload, ceiling: int, costs: CostStore) -> None:
        self.workload, self.ceiling, self.costs = workload, ceiling, costs
        self._places = ordered(workload)
        self._ordered = [setting for _, _, setting in self._places]
        self._priced: dict[int, Plan | None] = {}
        """By index in the order of time; ``None`` if it could not be measured under the ceiling."""
        self._failures: dict[int, str] = {}
        self._estimated: list[Plan] = []

    @property
    def first(self) -> Setting | None:
        """The setting with the shortest predicted time, if there is any."""
        return self._ordered[0] if self._ordered else None

    @property
    def failures(self) -> list[str]:
        """The reasons why settings could not be measured, each once."""
        return list(dict.fromkeys(self._failures.values()))

    def fastest(self) -> Plan | None:
        """Return the first setting that fits, in the order of predicted time."""
        first, ladders = len(self._ordered), self._ladders()
        if isinstance(self.workload, HasMonotoneKnobs) and ladders and not self._fits(ladders[0][0]):
            self._measure_together(index for ladder in ladders for index in (ladder[0], ladder[-1]))
        for ladder in ladders:
            if ladder[0] < first:
                first = min(first, self._first_that_fits([rung for rung in ladder if rung < first], first))
        plan = self._priced.get(first)
        if plan is None:
            return None
        # Among those of the same result. Where nothing is left to be done, every setting takes no time.
        lesser, seconds, _ = self._places[first]
        least = next(fastest for result, fastest, _ in self._places if result == lesser)
        slowdown = seconds / least if least > 0 else 1.0
        return replace(plan, rejected=self._rejected(first), offered=len(self._ordered), slowdown=slowdown)

    def smallest(self) -> Plan | None:
        """Return the plan that needs least.

        A setting that cannot be measured under the ceiling is estimated. If none can be estimated, or the libraries
        alone exceed the ceiling, settings are measured outside the walls. So are those that are slower than the least
        that was measured by an earlier command, since they may need less.
        """
        indices = [ladder[-1] for ladder in self._ladders()]
        self._measure_together(index for index in indices if index not in self._priced)
        for index in indices:
            self._priced[index] = self._price(index) or self._estimate(index)
        plans = [plan for plan in self._priced.values() if plan is not None]
        if not plans or _always(plans[0]) > self.ceiling:
            exact = {index: plan for index in indices if (plan := self._priced[index]) not in self._estimated}
            self._priced |= {index: exact.get(index) or self._price_beyond(index) for index in indices}
        elif not self._estimated:
            for index in indices:
                if self._priced[index] is None and index > self._least():
                    self._priced[index] = self._price_beyond(index)
        plans = [plan for plan in self._priced.values() if plan is not None]
        least = min(plans, key=lambda plan: plan.needed_bytes, default=None)
        if least is None:
            return None
        if least in self._estimated and least.needed_bytes > self.ceiling:
            # The ceiling that a refusal names must be enough, even if the probes do not fit under it either.
            error = Term("estimate's error", int(ESTIMATE_ERROR * least.predicted_peak_bytes), "measured")
            least = replace(least, footprint=Footprint.of([*least.footprint.terms, error]))
        return replace(least, rejected=self._rejected(len(self._ordered)), offered=len(self._ordered))

    def _least(self) -> int:
        """Index of the priced setting that needs least."""
        needed = {index: plan.needed_bytes for index, plan in self._priced.items() if plan is not None}
        return min(needed, key=needed.__getitem__)

    def _ladders(self) -> list[list[int]]:
        """Group the indices of settings that differ in monotone knobs only, the fastest first."""
        loose = set(self.workload.monotone_knobs) if isinstance(self.workload, HasMonotoneKnobs) else set()
        ladders: dict[tuple[Any, ...], list[int]] = {}
        for index, setting in enumerate(self._ordered):
            alike = tuple((name, value) for name, value in setting.items() if name not in loose)
            ladders.setdefault(alike if loose else (index,), []).append(index)
        return list(ladders.values())

    def _first_that_fits(self, ladder: Sequence[int], none: int) -> int:
        """Return the fastest index of a ladder that fits, by bisection; ``none`` if the slowest does not fit."""
        if self._fits(ladder[0]):
            return ladder[0]
        if len(ladder) == 1 or not self._fits(ladder[-1]):
            return none
        too_large, fits = 0, len(ladder) - 1
        while fits - too_large > 1:
            middle = (too_large + fits) // 2
            if self._fits(ladder[middle]):
                fits = middle
            else:
                too_large = middle
        return ladder[fits]

    def _fits(self, index: int) -> bool:
        plan = self._price(index)
        return plan is not None and plan.needed_bytes <= self.ceiling

    def _measure_together(self, indices: Iterable[int]) -> None:
        _measure_together([(self.workload, self._ordered[index]) for index in indices], self.ceiling, self.costs)

    def _price(self, index: int) -> Plan | None:
        if index not in self._priced:
            try:
                plan = price(self.workload, self._ordered[index], self.costs, ceiling=self.ceiling)
            except ProbeFailed as failure:
                plan, self._failures[index] = None, str(failure)
            self._priced[index] = plan
        return self._priced[index]

    def _estimate(self, index: int) -> Plan | None:
        setting = self._ordered[index]
        if not isinstance(self.workload, Estimated):
            return None
        footprint = self.workload.estimate(setting, self.costs, self.ceiling)
        if footprint is None:
            return None
        self._estimated.append(Plan(self.workload.name, tuple(sorted(setting.items())), footprint))
        return self._estimated[-1]

    def _price_beyond(self, index: int) -> Plan | None:
        try:
            return price(self.workload, self._ordered[index], self.costs, ceiling=None)
        except ProbeFailed as failure:
            self._failures[index] = str(failure)
            return None

    def _rejected(self, before: int) -> tuple[Rejected, ...]:
        """Return the priced settings whose index is below ``before``."""
        return tuple(
            Rejected(
                tuple(self._ordered[index].items()), plan.needed_bytes if plan else None, self._failures.get(index)
            )
            for index, plan in sorted(self._priced.items())
            if index < before
        )


def _always(plan: Plan) -> int:
    """Return the bytes that count in every phase: the libraries."""
    return sum(term.bytes for term in plan.footprint.terms if ALL in term.phases)


def _measure_together(offers: Iterable[tuple[Workload, Setting]], ceiling: int, costs: CostStore) -> None:
    """Measure the probes of several settings together, since each child has to load its libraries."""
    probes = [probe for workload, setting in offers for probe in workload.probes(setting)]
    with suppress(ProbeFailed):  # each setting is measured by itself later
        costs.collect(probes, ceiling=ceiling)


def _remedies(workload: Workload, budget: MemoryBudget, costs: CostStore, smallest: Plan | None) -> list[str]:
    """Return changes of the command line that would fit, with what they need, if the libraries alone fit."""
    if smallest is None or not isinstance(workload, SuggestsChanges):
        return []
    if _always(smallest) > budget.host_bytes:
        return []
    offers: dict[str, tuple[Workload, Setting]] = {}
    for change, variant in islice(workload.remedies(), REMEDIES_TRIED):
        nearest = min(variant.settings(), key=lambda setting: len(dict(smallest.knobs).items() - setting.items()))
        offers[change] = variant, nearest
    if isinstance(workload, HasMonotoneKnobs):
        _measure_together(list(offers.values())[:REMEDIES_NAMED], budget.host_bytes, costs)
    texts: list[str] = []
    for change, offer in offers.items():
        if len(texts) == REMEDIES_NAMED:
            break
        candidate = _priced_or_estimated(*offer, costs, budget.host_bytes)
        if candidate is not None and candidate.needed_bytes <= budget.host_bytes:
            texts.append(explain.remedy_text(change, candidate.needed_bytes))
    return texts


def _priced_or_estimated(workload: Workload, setting: Setting, costs: CostStore, ceiling: int) -> Plan | None:
    try:
        return price(workload, setting, costs, ceiling=ceiling)
    except ProbeFailed:
        estimated = workload.estimate(setting, costs, ceiling) if isinstance(workload, Estimated) else None
        return Plan(workload.name, tuple(sorted(setting.items())), estimated) if estimated else None
