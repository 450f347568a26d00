"""Work whose largest parts are left out where they alone do not fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.errors import DoesNotFit
from common.memory.costs.probes import Costs, Probe
from common.memory.costs.store import CostStore
from common.memory.footprint import Footprint, Term
from common.memory.plan import divisible as parts
from common.memory.plan.plan import Setting
from common.memory.process.budget import MIB, MemoryBudget


@dataclass
class Sizes:
    """Parts of so many MiB, one after the other, above a baseline of 50."""

    sizes: Sequence[int]
    plans: list[int] = field(default_factory=list)
    name: str = "test sizes"

    @property
    def parts(self) -> int:
        return len(self.sizes)

    def smallest(self, count: int, budget: MemoryBudget) -> "Sizes":
        return Sizes(sorted(self.sizes)[:count], self.plans)

    def settings(self) -> Iterator[Setting]:
        self.plans.append(len(self.sizes))
        yield {}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        return []

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        return Footprint.of(
            [Term("baseline", 50 * MIB, "measured"), Term("part", max(self.sizes) * MIB, "analytic", ("work",))]
        )

    def seconds(self, setting: Setting, costs: Costs) -> float:
        return 1.0


@pytest.mark.parametrize(("sizes", "kept"), [([1, 2, 3], 3), ([10, 900, 20, 30], 3), ([900] * 7 + [5], 1)])
def test_keeps_as_many_as_fit(tmp_path: Path, sizes: list[int], kept: int) -> None:
    plan, work = parts.plan(Sizes(sizes), MemoryBudget(100 * MIB), CostStore(tmp_path))
    assert isinstance(work, Sizes) and work.parts == kept
    assert plan.predicted_peak_bytes == (50 + max(work.sizes)) * MIB


def test_how_many_fit_is_found_by_bisection(tmp_path: Path) -> None:
    for small in (1, 37, 50, 99):
        work = Sizes([10] * small + [900] * (100 - small))
        _, chosen = parts.plan(work, MemoryBudget(100 * MIB), CostStore(tmp_path))
        assert isinstance(chosen, Sizes) and chosen.parts == small
        assert len(set(work.plans)) <= 8  # of 100: the whole, and one for each halving of 1 to 99


def test_refuses_as_a_whole_where_nothing_fits(tmp_path: Path) -> None:
    work = Sizes([200] * 100)
    with pytest.raises(DoesNotFit) as refusal:
        parts.plan(work, MemoryBudget(100 * MIB), CostStore(tmp_path))
    assert refusal.value.smallest is not None and refusal.value.smallest.predicted_peak_bytes == 250 * MIB
    assert len(set(work.plans)) < 9  # bisected
