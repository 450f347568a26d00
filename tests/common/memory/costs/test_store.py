import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UsageError
from common.memory.costs import probes
from common.memory.costs import store as costs
from common.memory.costs.probes import Probe, ProbeFailed
from common.memory.costs.store import CostStore, plausible
from common.memory.process.budget import GIB, MIB
from common.memory.process.child import ChildFailed

HERE = "common.memory.costs.store:_test_only"


def test_key_depends_on_everything_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Probe.of("common.x:f", libraries=("numpy",), threads=2, size=3, name="a")
    assert base.key == Probe.of("common.x:f", libraries=("numpy",), threads=2, name="a", size=3).key
    others = [
        Probe.of("common.x:g", libraries=("numpy",), threads=2, size=3, name="a"),
        Probe.of("common.x:f", libraries=("scipy",), threads=2, size=3, name="a"),
        Probe.of("common.x:f", libraries=("numpy",), threads=1, size=3, name="a"),
        Probe.of("common.x:f", libraries=("numpy",), threads=2, size=4, name="a"),
    ]
    assert len({probe.key for probe in [base, *others]}) == 5
    monkeypatch.setattr(probes, "CODE_VERSION", probes.CODE_VERSION + 1)
    assert base.key not in {probe.key for probe in others}


def test_another_warm_up_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    keys = set()
    for text in ("def warm_up() -> None: ...", "def warm_up() -> None:\n    import json"):
        (tmp_path / "warming.py").write_text(text)
        probes._source.cache_clear()
        keys.add(Probe.of("common.memory.costs.baseline:measure", warm_up="warming:warm_up").key)
        keys.add(Probe.of("common.memory.costs.baseline:measure", warm_up="warming:warm_up").key)
    assert len(keys) == 2 and "warming" not in sys.modules


def test_measured_once_then_read(tmp_path: Path) -> None:
    probe = Probe.of("common.memory.costs.baseline:measure", warm_up="common.bench.demo_allocation:warm_up")
    store = CostStore(tmp_path)
    assert store.cached([probe]) == {}
    first = store.collect([probe], ceiling=4 * GIB)
    assert 20 * MIB < first[probe]["bytes"] < 80 * MIB
    assert store.measured == 1
    again = CostStore(tmp_path)
    assert again.collect([probe], ceiling=4 * GIB) == first
    assert again.measured == 0


def test_probes_that_warm_up_alike_share_a_child(tmp_path: Path) -> None:
    here = "common.memory.costs.baseline:measure"
    both = [
        Probe.of(here, warm_up="common.bench.demo_allocation:warm_up", libraries=names) for names in ((), ("numpy",))
    ]
    other = Probe.of("common.training.amp:check")
    assert [len(group) for group in costs._grouped([both[0], other, both[1]])] == [2, 1]
    store = CostStore(tmp_path)
    found = store.collect(both, ceiling=4 * GIB)
    assert store.measured == 2 and found[both[0]]["bytes"] == pytest.approx(found[both[1]]["bytes"], abs=MIB)


def test_what_was_measured_before_a_failure_is_kept(tmp_path: Path) -> None:
    good = Probe.of("common.memory.costs.baseline:measure", warm_up="common.bench.demo_allocation:warm_up")
    bad = Probe.of("common.memory.costs.baseline:nothing", warm_up="common.bench.demo_allocation:warm_up")
    store = CostStore(tmp_path)
    with pytest.raises(ChildFailed, match="nothing"):
        store.collect([good, bad], ceiling=4 * GIB)
    assert good in store.cached([good, bad])


def test_a_damaged_entry_is_measured_again(tmp_path: Path) -> None:
    probe = Probe.of("common.memory.costs.baseline:measure", warm_up="common.bench.demo_allocation:warm_up")
    (tmp_path / f"{probe.key}.json").write_text("{")
    CostStore(tmp_path).collect([probe], ceiling=4 * GIB)
    assert json.loads((tmp_path / f"{probe.key}.json").read_text())["costs"]["bytes"] > 0


def test_a_running_command_measures_nothing_without_a_wall(tmp_path: Path) -> None:
    probe = Probe.of("common.memory.costs.baseline:measure", warm_up="common.bench.demo_allocation:warm_up")
    running = CostStore(tmp_path, walled=True)
    with pytest.raises(ProbeFailed, match="wall"):
        running.collect([probe], ceiling=None)
    refusing = CostStore(tmp_path)
    found = refusing.collect([probe], ceiling=None)
    assert refusing.exceeded and not running.exceeded
    assert running.collect([probe], ceiling=None) == found  # known by now


def test_only_this_suite_is_run(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="os:getcwd"):
        CostStore(tmp_path).collect([Probe.of("os:getcwd")], ceiling=4 * GIB)
    assert os.listdir(tmp_path) == []


def test_a_probe_that_fails_says_why_and_is_no_matter_of_memory(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=r"measure: .*nowhere"):
        CostStore(tmp_path).collect(
            [Probe.of("common.memory.costs.baseline:measure", warm_up="common.nowhere:f")], ceiling=GIB
        )


ENDINGS = "common.bench.forced.endings:"


@pytest.mark.parametrize(
    ("way", "error", "words"),
    [
        ("segfault", ChildFailed, "SIGSEGV"),
        ("terminate", ChildFailed, "SIGTERM"),
        ("leave", ChildFailed, "exit code 7"),
        ("allocate", ProbeFailed, r"under 4\.00 GiB \(end: "),
        ("decline", ProbeFailed, "under 4.00 GiB .*not here"),
        ("misuse", UsageError, "no such option"),
    ],
)
def test_only_memory_is_called_memory(tmp_path: Path, way: str, error: type[Exception], words: str) -> None:
    probe = Probe.of(f"{ENDINGS}end", way=way)
    store = CostStore(tmp_path)
    with pytest.raises(error, match=words) as caught:
        store.collect([probe], ceiling=4 * GIB)
    assert store.measured == 1  # its memory counts, though it has no result
    if error is not ProbeFailed:
        assert not isinstance(caught.value, ProbeFailed) and "under" not in str(caught.value)


def test_what_needs_more_is_not_tried_again_under_the_same_ceiling(tmp_path: Path) -> None:
    probe = Probe.of(f"{ENDINGS}end", way="allocate")

    def tries(ceiling: int) -> int:
        store = CostStore(tmp_path)
        with pytest.raises(ProbeFailed, match=r"under .*B \("):
            store.collect([probe], ceiling=ceiling)
        return store.measured

    assert [tries(ceiling) for ceiling in (2 * GIB, 2 * GIB, GIB, 3 * GIB, 3 * GIB)] == [1, 0, 0, 1, 0]
    (note,) = tmp_path.glob("*.tried")
    for damaged in ("{", "[]", note.read_text().replace(str(3 * GIB), str(9 * GIB))):
        note.write_text(damaged)
        assert tries(3 * GIB) == 1
    assert CostStore(tmp_path).cached([probe]) == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: [1, 2],
        lambda entry: None,
        lambda entry: {**entry, "costs": {}},
        lambda entry: {**entry, "costs": [1]},
        lambda entry: {**entry, "costs": dict.fromkeys(entry["costs"], "x")},
        lambda entry: {**entry, "costs": dict.fromkeys(entry["costs"], float("nan"))},
        lambda entry: {**entry, "costs": {name: -cost for name, cost in entry["costs"].items()}},
        lambda entry: {**entry, "costs": {name: cost // 2 for name, cost in entry["costs"].items()}},
        lambda entry: {**entry, "costs": {"bytes": entry["costs"]["bytes"]}},
        lambda entry: {name: value for name, value in entry.items() if name != "check"},
    ],
)
def test_a_damaged_entry_is_measured_anew(tmp_path: Path, damage: Callable[[dict[str, Any]], Any]) -> None:
    probe = Probe.of("common.memory.costs.baseline:measure", warm_up="nothing")
    store = CostStore(tmp_path)
    store._write(probe, {"bytes": 1000, "peak": 2000})
    assert store.cached([probe]) == {probe: {"bytes": 1000, "peak": 2000}}
    path = tmp_path / f"{probe.key}.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    assert store.cached([probe]) == {}


@pytest.mark.parametrize(
    ("costs", "believed"),
    [
        ({"bytes": 0, "peak": 5.5}, True),
        ({"bytes": -1}, False),
        ({"bytes": float("inf")}, False),
        ({"bytes": 1e300}, False),
        ({"bytes": True}, False),
        ({}, False),
        (None, False),
    ],
)
def test_costs_that_no_measurement_can_have(costs: Any, believed: bool) -> None:
    assert plausible(costs) is believed


def test_what_could_not_be_written_is_not_measured_again(tmp_path: Path) -> None:
    probe = Probe.of("common.memory.costs.baseline:measure", warm_up="common.bench.demo_allocation:warm_up")
    (tmp_path / "file").touch()  # in the place of the cache's folder
    found = CostStore(tmp_path / "file").collect([probe], ceiling=4 * GIB)
    later = CostStore(tmp_path / "file", measures=False)
    assert later.collect([probe], ceiling=4 * GIB) == found and later.measured == 0


@pytest.mark.parametrize("ceiling", [GIB, None])
def test_nothing_is_measured_where_there_is_no_room_for_a_child(tmp_path: Path, ceiling: int | None) -> None:
    probe = Probe.of("common.memory.costs.baseline:measure", warm_up="common.bench.demo_allocation:warm_up")
    store = CostStore(tmp_path, measures=False)
    with pytest.raises(ProbeFailed):
        store.collect([probe], ceiling=ceiling)
    assert not store.exceeded and not store.measured
