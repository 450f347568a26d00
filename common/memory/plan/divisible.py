"""Work in parts that may fail alone: the largest are left out where the rest would fit, instead of refusing all."""

from typing import Protocol, runtime_checkable

from common.errors import DoesNotFit
from common.memory.costs.store import CostStore
from common.memory.plan import planner
from common.memory.plan.plan import Plan
from common.memory.plan.planner import Workload
from common.memory.process.budget import MemoryBudget


@runtime_checkable
class Divisible(Protocol):
    """A workload of independent parts, done one after the other."""

    @property
    def parts(self) -> int:
        """How many there are."""
        ...

    def smallest(self, count: int, budget: MemoryBudget) -> Workload:
        """The same work with the ``count`` parts that need least; the others then fail as not fitting ``budget``."""
        ...


def plan(workload: Workload, budget: MemoryBudget, costs: CostStore) -> tuple[Plan, Workload]:
    """A plan for the work, or for as many of its smallest parts as fit; and the work that it is for.

    Raises
    ------
    DoesNotFit
        If not even the smallest part fits: the refusal of the whole.
    """
    try:
        return planner.plan(workload, budget, costs), workload
    except DoesNotFit:
        if not isinstance(workload, Divisible):
            raise
        fits, fails = 0, workload.parts
        chosen: tuple[Plan, Workload] | None = None
        while fails - fits > 1:
            middle = (fits + fails) // 2
            part = workload.smallest(middle, budget)
            try:
                chosen, fits = (planner.plan(part, budget, costs), part), middle
            except DoesNotFit:
                fails = middle
        if chosen is None:
            raise
        return chosen
