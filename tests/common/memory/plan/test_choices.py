"""Work that may be done in several sizes: the best one that fits is done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.memory.costs.probes import Costs, Probe
from common.memory.costs.store import CostStore
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting
from common.memory.plan.planner import best_choice
from common.memory.process.budget import MIB, MemoryBudget


@dataclass
class Patch:
    """One size, in MiB; its second setting needs 20 MiB less than its first."""

    size: int
    tried: list[int]
    name: str = "test patch"

    def settings(self) -> Iterator[Setting]:
        yield from ({"n": 0}, {"n": 1})

    def probes(self, setting: Setting) -> Sequence[Probe]:
        return []

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        self.tried.append(self.size)
        more = 20 if setting["n"] == 0 else 0
        return Footprint.of([Term("patch", (self.size + more) * MIB, "analytic", ("work",))])

    def seconds(self, setting: Setting) -> float:
        return 1.0


@dataclass
class Patches(Patch):
    """Several sizes, of which this is the first."""

    others: Sequence[int] = field(default=())

    def choices(self) -> list[tuple[Patch, list[Setting]]]:
        return [(Patch(size, self.tried), list(self.settings())) for size in (self.size, *self.others)]


@pytest.mark.parametrize(
    ("ceiling", "size", "prices"), [(1000, 200, 1), (150, 142, 4), (100, 92, 4), (30, 22, 4), (14, 10, 4), (5, 10, 4)]
)
def test_the_best_that_fits_is_found_by_bisection(tmp_path: Path, ceiling: int, size: int, prices: int) -> None:
    work = Patches(200, [], others=(142, 120, 92, 60, 40, 22, 15, 10))
    chosen = best_choice(work, MemoryBudget(ceiling * MIB), CostStore(tmp_path))
    assert isinstance(chosen, Patch) and chosen.size == size  # the smallest where none fits, which is then refused
    assert len(set(work.tried)) <= prices


def test_work_without_choices_is_done_as_it_is(tmp_path: Path) -> None:
    work = Patch(900, [])
    assert best_choice(work, MemoryBudget(1), CostStore(tmp_path)) is work
