"""Work whose largest parts are left out where they alone do not fit."""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.cli import main
from common.errors import DoesNotFit
from common.memory.costs.probes import Costs, Probe
from common.memory.costs.store import CostStore
from common.memory.footprint import Footprint, Term
from common.memory.plan.divisible import plan_fewer
from common.memory.plan.plan import Plan, Setting
from common.memory.plan.plan_file import read_work
from common.memory.plan.planner import Workload
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

    def seconds(self, setting: Setting) -> float:
        return 1.0


@pytest.mark.parametrize(("sizes", "kept"), [([1, 2, 903], 2), ([10, 900, 20, 30], 3), ([900] * 7 + [5], 1)])
def test_keeps_as_many_as_fit(tmp_path: Path, sizes: list[int], kept: int) -> None:
    chosen = plan_fewer(Sizes(sizes), MemoryBudget(100 * MIB), CostStore(tmp_path))
    assert chosen is not None
    plan, work = chosen
    assert isinstance(work, Sizes) and work.parts == kept
    assert plan.predicted_peak_bytes == (50 + max(work.sizes)) * MIB


def test_how_many_fit_is_found_by_bisection(tmp_path: Path) -> None:
    for small in (1, 37, 50, 99):
        work = Sizes([10] * small + [900] * (100 - small))
        chosen = plan_fewer(work, MemoryBudget(100 * MIB), CostStore(tmp_path))
        assert chosen is not None
        assert isinstance(chosen[1], Sizes) and chosen[1].parts == small
        assert len(set(work.plans)) <= 7  # one for each halving of 1 to 99


def test_plans_none_where_nothing_fits(tmp_path: Path) -> None:
    for count in (1, 100):
        work = Sizes([200] * count)
        assert plan_fewer(work, MemoryBudget(100 * MIB), CostStore(tmp_path)) is None
        assert len(set(work.plans)) < 8  # bisected


def test_a_command_plans_the_whole_then_fewer_parts_then_refuses_the_whole(tmp_path: Path) -> None:
    def choose(*sizes: int) -> tuple[Plan, Workload]:
        args = argparse.Namespace(plan=None, dry_run=True)
        return main._choose(args, Sizes(sizes), MemoryBudget(100 * MIB), CostStore(tmp_path))

    for sizes, kept in (((1, 2, 3), 3), ((10, 900, 20, 30), 3)):
        work = choose(*sizes)[1]
        assert isinstance(work, Sizes) and work.parts == kept
    for sizes in ((200,), (180, 200, 190)):
        with pytest.raises(DoesNotFit) as refusal:
            choose(*sizes)
        assert refusal.value.smallest is not None and refusal.value.smallest.predicted_peak_bytes == 250 * MIB


@dataclass
class Replaced(Sizes):
    """Parts for which smaller ones may stand in."""

    others: Sequence["Smaller"] = ()

    def substitutes(self) -> "Iterator[Smaller]":
        yield from self.others


@dataclass
class Smaller(Sizes):
    """What stands in."""

    note: str = ""

    def settings(self) -> Iterator[Setting]:
        yield {"variant": self.note}


def test_what_may_stand_in_is_planned_where_the_whole_does_not_fit_and_before_fewer_parts(tmp_path: Path) -> None:
    costs, budget = CostStore(tmp_path), MemoryBudget(100 * MIB)
    others = (Smaller([70], note="too large"), Smaller([20], note="fits"), Smaller([10], note="loses more"))
    args = argparse.Namespace(plan=None, dry_run=True)
    plan, work = main._choose(args, Replaced([30, 200], others=others), budget, costs)
    assert work is others[1] and plan.note == plan["variant"] == plan.to_json()["note"] == "fits"
    again, same = read_work(json.dumps(plan.to_json()), Replaced([30, 200], others=others), budget, costs)
    assert same is others[1] and again == plan
    whole, work = main._choose(args, Replaced([30], others=others), budget, costs)
    assert isinstance(work, Replaced) and not whole.note and "note" not in whole.to_json()
    with pytest.raises(ValueError, match="variant"):  # one that the user does not allow
        read_work(json.dumps(plan.to_json()), Replaced([30], others=others[:1]), budget, costs)
    fewer, work = main._choose(args, Replaced([30, 200], others=others[:1]), budget, costs)
    assert isinstance(work, Sizes) and work.parts == 1 and not fewer.note
    with pytest.raises(DoesNotFit):
        main._choose(args, Replaced([200], others=others[:1]), budget, costs)
