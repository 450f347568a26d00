"""Choose the setting that fits: the only planner.

A workload lists the settings that the user's flags leave open, says what must be known to price one (probes), and
prices it by arithmetic. The planner asks in the order of predicted time, so the first setting that fits is the
fastest; when none does, it names the smallest ceiling that would do. ``common.memory.plan.explain`` puts both into
words.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from common.errors import DoesNotFit
from common.memory.costs.probes import Costs, Probe, ProbeFailed
from common.memory.costs.store import CostStore
from common.memory.footprint import ALL, Footprint, Term
from common.memory.plan import explain
from common.memory.plan.plan import Plan, Rejected, Setting
from common.memory.process.budget import MemoryBudget

ESTIMATE_ERROR = 0.025
"""Of a whole process's peak, where the largest part was estimated (measured 1.3 % over to 2.1 % under)."""
REMEDIES_TRIED = 4
"""Changes of the command line that a refusal prices at most: each may need a measurement of some seconds."""
REMEDIES_NAMED = 2
"""Of those that would do."""


class Workload(Protocol):
    """A command that allocates; one object per command in ``apps/<app>/workloads.py``."""

    @property
    def name(self) -> str:
        """``"imaging train"``"""
        ...

    def settings(self) -> Iterator[Setting]:
        """Settings that the user's flags leave open; quality-changing ones last."""
        ...

    def probes(self, setting: Setting, /) -> Sequence[Probe]:
        """What must be known before ``setting`` can be priced."""
        ...

    def footprint(self, setting: Setting, costs: Costs, /) -> Footprint:
        """Price one setting; pure arithmetic."""
        ...

    def seconds(self, setting: Setting, costs: Costs, /) -> float:
        """Predicted time; relative is enough. Must answer before any probe is known."""
        ...


@runtime_checkable
class HasMonotoneKnobs(Protocol):
    """A workload with knobs along which the slower setting never needs more bytes: the planner bisects these."""

    @property
    def monotone_knobs(self) -> Sequence[str]:
        """Names of such knobs."""
        ...


@runtime_checkable
class Estimated(Protocol):
    """A workload that can tell what a setting needs although not all of it can be measured under the ceiling."""

    def estimate(self, setting: Setting, costs: CostStore, ceiling: int) -> Footprint | None:
        """Its price, from smaller things that can be measured; ``None`` where these cannot either."""
        ...


@runtime_checkable
class SuggestsChanges(Protocol):
    """A workload that knows which changes of its command line would need less."""

    def remedies(self) -> Iterator[tuple[str, Workload]]:
        """``("--factors 32", the workload that it makes)``, the smallest loss first."""
        ...


def price(workload: Workload, setting: Setting, costs: CostStore, *, ceiling: int | None) -> Plan:
    """Measure what is missing (``CostStore.collect``), then price one setting.

    Raises
    ------
    ProbeFailed
        If a probe could not be measured under the ceiling.
    """
    known = costs.collect(workload.probes(setting), ceiling=ceiling)
    return Plan(workload.name, tuple(sorted(setting.items())), workload.footprint(setting, known))


def plan(workload: Workload, budget: MemoryBudget, costs: CostStore) -> Plan:
    """The fastest setting whose predicted peak plus reserve is within the ceiling.

    Raises
    ------
    DoesNotFit
        Carrying the plan that needs the least, and what else would help.
    """
    search = _Search(workload, budget.host_bytes, costs)
    chosen = search.fastest()
    if chosen is not None:
        return chosen
    smallest = search.smallest()
    if smallest is not None and smallest.needed_bytes <= budget.host_bytes:
        return smallest  # measuring took more than running does
    raise DoesNotFit(
        ceiling=budget.host_bytes,
        smallest=smallest,
        reasons=search.failures,
        remedies=_remedies(workload, budget, costs, smallest),
    )


def leanest(workload: Workload, budget: MemoryBudget, costs: CostStore) -> Plan:
    """The setting that needs least, whether it fits or not.

    Raises
    ------
    DoesNotFit
        If nothing could be priced.
    """
    search = _Search(workload, budget.host_bytes, costs)
    found = search.smallest()
    if found is None:
        raise DoesNotFit(ceiling=budget.host_bytes, reasons=search.failures)
    return found


class _Search:
    """One pass over the settings, pricing as few as it can: pricing may mean seconds of measuring."""

    def __init__(self, workload: Workload, ceiling: int, costs: CostStore) -> None:
        self.workload, self.ceiling, self.costs = workload, ceiling, costs
        offered = list(workload.settings())
        known = costs.cached(probe for setting in offered for probe in workload.probes(setting))
        self._seconds = [workload.seconds(setting, known) for setting in offered]
        order = sorted(range(len(offered)), key=self._seconds.__getitem__)
        self._ordered = [offered[index] for index in order]
        self._seconds.sort()
        self._priced: dict[int, Plan | None] = {}
        """By place in the order; ``None``: could not be measured under the ceiling."""
        self._failures: dict[int, str] = {}
        self._estimated: list[Plan] = []

    @property
    def failures(self) -> list[str]:
        """Why settings could not be measured, each reason once."""
        return list(dict.fromkeys(self._failures.values()))

    def fastest(self) -> Plan | None:
        """The first setting that fits, in the order of predicted time."""
        first, ladders = len(self._ordered), self._ladders()
        if isinstance(self.workload, HasMonotoneKnobs) and ladders and not self._fits(ladders[0][0]):
            ends = [place for ladder in ladders for place in (ladder[0], ladder[-1])]
            _measure_ahead([(self.workload, self._ordered[place]) for place in ends], self.ceiling, self.costs)
        for ladder in ladders:
            if ladder[0] < first:
                first = min(first, self._first_that_fits([rung for rung in ladder if rung < first], first))
        found = self._priced.get(first)
        if found is None:
            return None
        slowdown = self._seconds[first] / self._seconds[0] if self._seconds[0] > 0 else math.nan
        return replace(found, rejected=self._rejected(first), offered=len(self._ordered), slowdown=slowdown)

    def smallest(self) -> Plan | None:
        """The plan that needs least of all. What could not be measured under the ceiling is estimated; if nothing can
        be, or the libraries alone are beyond it, it is measured without a ceiling."""
        places = [ladder[-1] for ladder in self._ladders()]
        for place in places:
            self._priced[place] = self._price(place) or self._estimate(place)
        plans = [found for found in self._priced.values() if found is not None]
        if not plans or _always(plans[0]) > self.ceiling:
            exact = {place: found for place in places if (found := self._priced[place]) not in self._estimated}
            self._priced |= {place: exact.get(place) or self._price_beyond(place) for place in places}
            plans = [found for found in self._priced.values() if found is not None]
        least = min(plans, key=lambda found: found.needed_bytes, default=None)
        if least is None:
            return None
        if least in self._estimated and least.needed_bytes > self.ceiling:
            # What a refusal names has to run then: where measuring fits no better, on the same kind of estimate.
            error = Term("estimate's error", int(ESTIMATE_ERROR * least.predicted_peak_bytes), "measured")
            least = replace(least, footprint=Footprint.of([*least.footprint.terms, error]))
        return replace(least, rejected=self._rejected(len(self._ordered)), offered=len(self._ordered))

    def _ladders(self) -> list[list[int]]:
        """Places of settings alike but for the monotone knobs, the fastest first; the ladders likewise."""
        loose = set(self.workload.monotone_knobs) if isinstance(self.workload, HasMonotoneKnobs) else set()
        ladders: dict[tuple[Any, ...], list[int]] = {}
        for place, setting in enumerate(self._ordered):
            alike = tuple((name, value) for name, value in setting.items() if name not in loose)
            ladders.setdefault(alike if loose else (place,), []).append(place)
        return list(ladders.values())

    def _first_that_fits(self, ladder: Sequence[int], none: int) -> int:
        """The fastest rung that fits, by bisection; ``none`` if even the slowest does not."""
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

    def _fits(self, place: int) -> bool:
        found = self._price(place)
        return found is not None and found.needed_bytes <= self.ceiling

    def _price(self, place: int) -> Plan | None:
        if place not in self._priced:
            try:
                found = price(self.workload, self._ordered[place], self.costs, ceiling=self.ceiling)
            except ProbeFailed as failure:
                found, self._failures[place] = None, str(failure)
            self._priced[place] = found
        return self._priced[place]

    def _estimate(self, place: int) -> Plan | None:
        setting = self._ordered[place]
        if not isinstance(self.workload, Estimated):
            return None
        found = self.workload.estimate(setting, self.costs, self.ceiling)
        if found is None:
            return None
        self._estimated.append(Plan(self.workload.name, tuple(sorted(setting.items())), found))
        return self._estimated[-1]

    def _price_beyond(self, place: int) -> Plan | None:
        try:
            return price(self.workload, self._ordered[place], self.costs, ceiling=None)
        except ProbeFailed as failure:
            self._failures[place] = str(failure)
            return None

    def _rejected(self, before: int) -> tuple[Rejected, ...]:
        """What was priced and is faster than the choice."""
        return tuple(
            Rejected(
                tuple(self._ordered[place].items()), found.needed_bytes if found else None, self._failures.get(place)
            )
            for place, found in sorted(self._priced.items())
            if place < before
        )


def _always(plan: Plan) -> int:
    """What is held in every phase: the libraries."""
    return sum(term.bytes for term in plan.footprint.terms if ALL in term.phases)


def _measure_ahead(offers: Iterable[tuple[Workload, Setting]], ceiling: int, costs: CostStore) -> None:
    """What several settings need, in one child for all: each child loads its libraries anew."""
    probes = [probe for workload, setting in offers for probe in workload.probes(setting)]
    with suppress(ProbeFailed):  # each is then asked for by itself
        costs.collect(probes, ceiling=ceiling)


def _remedies(workload: Workload, budget: MemoryBudget, costs: CostStore, smallest: Plan | None) -> list[str]:
    """Changes of the command line that would fit, with what they need; few, and only where the libraries alone fit."""
    if smallest is None or not isinstance(workload, SuggestsChanges):
        return []
    if _always(smallest) > budget.host_bytes:
        return []
    offers: dict[str, tuple[Workload, Setting]] = {}
    for change, variant in islice(workload.remedies(), REMEDIES_TRIED):
        nearest = min(variant.settings(), key=lambda setting: len(dict(smallest.knobs).items() - setting.items()))
        offers[change] = variant, nearest
    if isinstance(workload, HasMonotoneKnobs):
        _measure_ahead(list(offers.values())[:REMEDIES_NAMED], budget.host_bytes, costs)
    found: list[str] = []
    for change, offer in offers.items():
        if len(found) == REMEDIES_NAMED:
            break
        try:
            candidate = price(*offer, costs, ceiling=budget.host_bytes)
        except ProbeFailed:
            continue
        if candidate.needed_bytes <= budget.host_bytes:
            found.append(explain.remedy_text(change, candidate.needed_bytes))
    return found
