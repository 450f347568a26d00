"""A baseline that is short, because the kernel has more of the libraries in its cache than when it was measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.bench.demo_allocation import WARM_UP
from common.errors import DoesNotFit
from common.memory.costs.probes import Probe
from common.memory.costs.store import CostStore, checksum
from common.memory.footprint import Footprint, Term
from common.memory.plan import amend
from common.memory.plan.plan import Plan
from common.memory.process.budget import MIB

Run = Callable[..., Any]
LESS = 9 * MIB
BASELINE = Probe.of("m:f", libraries=(), threads=1, warm_up=WARM_UP)


def plan() -> Plan:
    """Libraries of 100 MiB and 50 MiB of work."""
    terms = [Term("interpreter and libraries", 100 * MIB, "measured"), Term("work", 50 * MIB, "analytic", ("run",))]
    return Plan("test", (), Footprint.of(terms))


@pytest.mark.parametrize("more", [-5 * MIB, 0, MIB, amend.USUAL_BYTES + 1])
def test_what_is_mapped_in_addition_is_a_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int) -> None:
    costs = CostStore(tmp_path)
    costs.baselines[WARM_UP] = BASELINE, 70 * MIB
    costs._write(BASELINE, {"bytes": 100 * MIB, "files": 70 * MIB})
    monkeypatch.setattr(amend, "file_bytes", lambda: 70 * MIB + more)
    found = amend.amended(plan(), costs, WARM_UP, 300 * MIB)
    corrected = int(amend.LATER * more) if more > amend.USUAL_BYTES else 0
    assert found.footprint.phases() == {"run": 150 * MIB + (corrected or max(0, more))}
    assert costs.cached([BASELINE])[BASELINE] == {"bytes": 100 * MIB + corrected, "files": 70 * MIB + corrected}


def test_a_little_more_never_refuses_and_much_more_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = CostStore(tmp_path)
    costs.baselines[WARM_UP] = BASELINE, 70 * MIB
    monkeypatch.setattr(amend, "file_bytes", lambda: 75 * MIB)
    assert amend.amended(plan(), costs, WARM_UP, 152 * MIB) == plan()
    monkeypatch.setattr(amend, "file_bytes", lambda: 90 * MIB)
    with pytest.raises(DoesNotFit) as caught:
        amend.amended(plan(), costs, WARM_UP, 171 * MIB)
    assert caught.value.smallest_feasible_bytes is not None and caught.value.smallest_feasible_bytes > 171 * MIB
    assert amend.amended(plan(), costs, "another:warm_up", 152 * MIB) == plan()


def test_a_short_baseline_is_corrected_by_the_command_that_finds_it(run: Run, tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    words = ("common.bench.demo_allocation", "--bytes", "20MiB", "--json", "--memory", "300MiB")
    assert run(*words, env=environment).code == 0
    needed = run(*words, env=environment).record["plan"]["predicted_peak_bytes"]
    (path,) = (path for path in tmp_path.rglob("*.json") if "baseline:measure" in path.read_text())
    entry = json.loads(path.read_text())
    costs = {name: max(1, size - LESS) for name, size in entry["costs"].items()}
    check = checksum(Probe(entry["function"], entry["arguments"]), costs)
    path.write_text(json.dumps({**entry, "costs": costs, "check": check}))
    planned = run(*words, "--dry-run", env=environment).record["plan"]["predicted_peak_bytes"]
    assert planned == pytest.approx(needed - LESS, abs=2 * MIB)
    for _ in range(2):
        done = run(*words, env=environment)
        peak = done.record["measured"]["peak_bytes"]
        assert done.code == 0 and peak <= done.record["plan"]["predicted_peak_bytes"] <= 1.15 * peak
    planned = run(*words, "--dry-run", env=environment).record["plan"]["predicted_peak_bytes"]
    assert planned == pytest.approx(needed, abs=2 * MIB)
