"""Plan work in independent parts: if not all fit, the largest are skipped and the rest run."""

from typing import Protocol, runtime_checkable

from common.errors import DoesNotFit
from common.memory.costs.store import CostStore
from common.memory.plan import planner
from common.memory.plan.plan import Plan
from common.memory.plan.planner import Workload
from common.memory.process.budget import MemoryBudget


@runtime_checkable
class Divisible(Protocol):
    """A workload of independent parts that run one after the other."""

    @property
    def parts(self) -> int:
        """Number of parts."""
        ...

    def smallest(self, count: int, budget: MemoryBudget) -> Workload:
        """Return the work of the ``count`` parts that need least; the others then fail because they do not fit."""
        ...


def plan(workload: Workload, budget: MemoryBudget, costs: CostStore) -> tuple[Plan, Workload]:
    """Plan the work, or as many of its smallest parts as fit, which bisection finds.

    Returns
    -------
    tuple
        The plan, and the workload that it is for.

    Raises
    ------
    DoesNotFit
        If not even the smallest part fits; it is the refusal of the whole.
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
            fewer = workload.smallest(middle, budget)
            try:
                chosen, fits = (planner.plan(fewer, budget, costs), fewer), middle
            except DoesNotFit:
                fails = middle
        if chosen is None:
            raise
        return chosen
