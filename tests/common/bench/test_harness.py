import json
import sys
from pathlib import Path
from typing import Any

import pytest

from common.bench import harness
from common.bench.harness import Bound, Suite
from common.memory.process.budget import MIB


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.setattr(harness, "current_commit", lambda: "c0ffee")
    return Suite("test", directory=tmp_path)


def _lines(suite: Suite) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (suite.directory / "test.jsonl").read_text().splitlines()]


def test_a_command_with_a_record(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["-m", "common.bench.demo_allocation", "--bytes", "64MiB", "--memory", "200MiB", "--json"]
    near = Bound("predicted_over_measured", at_least=1.0, at_most=1.25)
    suite.case("fill", argv, ceiling=200 * MIB, repeats=2, bounds=[near, Bound("result.written", 64 * MIB, 64 * MIB)])
    assert suite.main([]) == 0
    lines = _lines(suite)
    assert [line["name"] for line in lines] == ["fill", "fill"]
    assert lines[0]["commit"] == "c0ffee" and lines[0]["peak"] <= 200 * MIB
    assert lines[0]["predicted"] > lines[0]["baseline"] > 0
    assert 0 < lines[0]["working_seconds"] < lines[0]["process_seconds"] == lines[0]["seconds"]
    assert "n=2" in capsys.readouterr().out
    # Done for this commit: not run again, unless forced.
    assert suite.main([]) == 0 and len(_lines(suite)) == 2
    assert suite.main(["--again"]) == 0 and len(_lines(suite)) == 4


def test_ratios_run_in_turn_and_bounds_can_fail(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("a", 30), ("b", 10)):
        code = f"import json; print('noise'); print(json.dumps({{'x': {value}}}))"
        suite.case(name, [sys.executable, "-c", code], repeats=2, group="pair")
    suite.ratio("a over b", "a", "b", Bound("result.x", at_most=3.0))
    assert suite.main([]) == 0
    assert [line["name"] for line in _lines(suite)] == ["a", "b", "a", "b"]
    suite.ratio("too high", "a", "b", Bound("result.x", at_most=2.9))
    assert suite.main([]) == 1
    assert "FAIL  3  (result.x <= 2.9)" in capsys.readouterr().out


def test_a_script_says_when_its_work_was_done(suite: Suite) -> None:
    suite.case("script", [sys.executable, "-c", """import time; time.sleep(0.2); print('{"elapsed": 0.1}')"""])
    assert suite.main([]) == 0
    (line,) = _lines(suite)
    assert line["seconds"] == line["working_seconds"] == 0.1 and line["process_seconds"] > 0.2


def test_a_failing_command_fails_its_case(suite: Suite) -> None:
    suite.case("broken", [sys.executable, "-c", "raise SystemExit(3)"])
    assert suite.main([]) == 1
    assert _lines(suite)[0]["exit"] == 3


def test_an_absent_metric_never_passes(suite: Suite) -> None:
    suite.case("plain", [sys.executable, "-c", "pass"], bounds=[Bound("result.dice", at_least=0.5)])
    assert suite.main([]) == 1


def test_what_measuring_costs_held_is_not_called_a_prediction() -> None:
    def term(name: str, size: int, phase: str) -> dict[str, object]:
        return {"name": name, "bytes": size, "source": "measured", "phases": [phase]}

    def phase(name: str, size: int) -> dict[str, object]:
        return {"name": name, "seconds": 1.0, "peak_bytes": size}

    plan = {"terms": [term("floor", 100, "*"), term("block", 50, "fill"), term("measuring costs", 400, "probe")]}
    phases = [phase("plan", 480), phase("probe", 500), phase("fill", 140)]
    assert harness._compared({"plan": plan, "measured": {"phases": phases}}) == (150, 140)
    warm = {"terms": plan["terms"][:2]}
    assert harness._compared({"plan": warm, "measured": {"phases": [phase("plan", 60), phase("fill", 140)]}}) == (
        150,
        140,
    )
