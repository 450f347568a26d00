"""Plan work in independent parts of which not all fit: the largest are skipped and the rest run."""

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
