import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.memory.budget import MIB, MemoryBudget
from common.memory.costs import Costs, CostStore, Probe, ProbeFailed
from common.memory.footprint import Footprint, Term
from common.memory.planner import DoesNotFit, Plan, Setting, plan, read_plan

PROBE = Probe.of("tests.common.memory.test_planner:nothing")


@dataclass(frozen=True)
class Blocks:
    """100 MiB of data in 1, 2, 4 or 8 blocks above a floor of 50 MiB."""

    name: str = "test blocks"

    def settings(self) -> Iterator[Setting]:
        for blocks in (8, 1, 4, 2):
            yield {"blocks": blocks}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        return [PROBE]

    def footprint(self, setting: Setting, known: Costs) -> Footprint:
        return Footprint.of(
            [
                Term("floor", int(known[PROBE]["bytes"]), "measured"),
                Term("block", 100 * MIB // int(setting["blocks"]), "analytic", ("work",)),
            ]
        )

    def seconds(self, setting: Setting, known: Costs) -> float:
        return float(setting["blocks"])


class Known(CostStore):
    """A store that has measured everything, and counts how often it is asked."""

    asked = 0

    def known(self, probes: object, *, ceiling: int) -> Costs:
        self.asked += 1
        return {PROBE: {"bytes": 50 * MIB}}


@pytest.fixture
def costs(tmp_path: Path) -> Known:
    return Known(tmp_path)


def test_takes_the_fastest_that_fits_and_prices_no_further(costs: Known) -> None:
    chosen = plan(Blocks(), MemoryBudget(110 * MIB), costs)
    assert chosen["blocks"] == 2
    assert chosen.predicted_peak_bytes == 100 * MIB
    assert chosen.reserve_bytes == 4 * MIB + MIB
    assert costs.asked == 2
    assert chosen.rejected == ("blocks=1: needs 155.5 MiB",)


def test_reserve_decides_at_the_edge(costs: Known) -> None:
    assert plan(Blocks(), MemoryBudget(105 * MIB), costs)["blocks"] == 2
    assert plan(Blocks(), MemoryBudget(105 * MIB - 1), costs)["blocks"] == 4


def test_refusal_names_the_smallest_ceiling_and_that_one_works(costs: Known) -> None:
    with pytest.raises(DoesNotFit) as refusal:
        plan(Blocks(), MemoryBudget(60 * MIB), costs)
    smallest = refusal.value.smallest_feasible_bytes
    # 62.5 MiB and a reserve of 4 MiB + 1 % of it, rounded up to a whole MiB.
    assert smallest == 68 * MIB
    assert "--memory 68MiB" in str(refusal.value)
    assert "floor 50.0 MiB, block 12.5 MiB" in str(refusal.value)
    assert plan(Blocks(), MemoryBudget(smallest), costs)["blocks"] == 8


def test_an_unmeasurable_setting_is_rejected_not_fatal(tmp_path: Path) -> None:
    class Failing(CostStore):
        def known(self, probes: object, *, ceiling: int) -> Costs:
            raise ProbeFailed("cannot be measured under 1.0 MiB")

    with pytest.raises(DoesNotFit) as refusal:
        plan(Blocks(), MemoryBudget(MIB), Failing(tmp_path))
    assert refusal.value.smallest_feasible_bytes is None
    assert "cannot be measured" in str(refusal.value)


def test_plan_is_hashable_printable_and_json(costs: Known) -> None:
    chosen = plan(Blocks(), MemoryBudget(110 * MIB), costs)
    assert len({chosen, plan(Blocks(), MemoryBudget(110 * MIB), costs)}) == 1
    assert "predicted peak 100.0 MiB in phase 'work', reserve 5.0 MiB" in str(chosen)
    assert json.loads(json.dumps(chosen.to_json()))["knobs"] == {"blocks": 2}


def _feed(costs: Known, ceiling: int = 110 * MIB, **change: object) -> Plan:
    data = {"workload": "test blocks", "knobs": {"blocks": 2}} | change
    return read_plan(json.dumps(data), Blocks(), MemoryBudget(ceiling), costs)


def test_an_edited_plan_is_priced_anew(costs: Known) -> None:
    assert _feed(costs, knobs={"blocks": 3}).predicted_peak_bytes == 50 * MIB + 100 * MIB // 3
    with pytest.raises(DoesNotFit):
        _feed(costs, knobs={"blocks": 1})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"workload": "other"}, "a plan for 'other'"),
        ({"knobs": {"blocks": 2, "wings": 1}}, "unknown or missing knobs: wings"),
        ({"knobs": {}}, "unknown or missing knobs: blocks"),
        ({"knobs": {"blocks": "two"}}, "'two' is not int"),
        ({"knobs": 3}, "not a plan"),
    ],
)
def test_nonsense_is_refused_with_its_reason(costs: Known, change: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        _feed(costs, **change)
