"""Plan work that does not fit as it is: with a lesser result that the user allows, or without its largest parts."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol, runtime_checkable

from common.errors import DoesNotFit
from common.memory.costs.store import CostStore
from common.memory.plan import planner
from common.memory.plan.plan import Plan
from common.memory.plan.planner import Workload
from common.memory.process.budget import MemoryBudget


@runtime_checkable
class Divisible(Workload, Protocol):
    """A workload of independent parts that run one after the other."""

    @property
    def parts(self) -> int:
        """Number of parts."""
        ...

    def smallest(self, count: int, budget: MemoryBudget) -> Workload:
        """Return the work of the ``count`` parts that need least; the others then fail because they do not fit."""
        ...


@runtime_checkable
class Replaceable(Workload, Protocol):
    """A workload in whose place others may be done, where it does not fit."""

    def substitutes(self) -> "Iterator[Substitute]":
        """Iterate over those that the user allows, the smallest loss first."""
        ...


class Substitute(Workload, Protocol):
    """Work that may be done instead of other work, with a lesser result."""

    @property
    def note(self) -> str:
        """One line for the plan: what is done instead, and what it loses."""
        ...


def plan_other(workload: Workload, budget: MemoryBudget, costs: CostStore) -> tuple[Plan, Workload] | None:
    """Plan what may be done where a workload does not fit: a substitute for it, or else as many of its parts as fit.

    Returns
    -------
    tuple or None
        The plan, and the workload that it is for; ``None`` if nothing fits.
    """
    if isinstance(workload, Replaceable):
        for substitute in workload.substitutes():
            try:
                chosen = planner.plan(substitute, budget, costs)
            except DoesNotFit:
                continue
            return replace(chosen, note=substitute.note), substitute
    return plan_fewer(workload, budget, costs) if isinstance(workload, Divisible) else None


def plan_fewer(workload: Divisible, budget: MemoryBudget, costs: CostStore) -> tuple[Plan, Workload] | None:
    """Plan as many of the smallest parts as fit, but not all; bisection finds how many.

    Returns
    -------
    tuple or None
        The plan, and the workload that it is for; ``None`` if not even the smallest part fits.
    """
    fits, fails = 0, workload.parts
    chosen: tuple[Plan, Workload] | None = None
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fewer = workload.smallest(middle, budget)
        try:
            chosen, fits = (planner.plan(fewer, budget, costs), fewer), middle
        except DoesNotFit:
            fails = middle
    return chosen
