"""What is drawn follows the parser, and what is wrong with a run is found."""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.bench import demo_allocation
from common.bench.random_commands import Campaign, Step, Watcher, _faults, options
from common.memory.process.budget import MIB
from tests.machine import patience

FILL = "common.bench.demo_allocation"
VALUES = {
    "bytes": st.integers(1, 40).map(lambda size: [f"{size}MiB"]),
    "threads": st.just(["1"]),
    "seed": st.just(["3"]),
}


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_drawn_options_are_what_the_parser_takes(data: st.DataObject) -> None:
    parser = demo_allocation.parser()
    words = options(parser, data.draw, VALUES, ("hostile", "map"))
    known = {name for action in parser._actions for name in action.option_strings}
    assert {word for word in words if word.startswith("--")} <= known
    parser.parse_args(words)


@settings(max_examples=1)
@given(st.data())
def test_a_new_option_has_to_be_drawn_too(data: st.DataObject) -> None:
    parser = argparse.ArgumentParser("cmd")
    parser.add_argument("--new", type=int)
    with pytest.raises(KeyError, match="cmd --new"):
        options(parser, data.draw, {}, ())
    assert options(parser, data.draw, {}, ("new",)) == []


GOOD: dict[str, Any] = {
    "exit": 0, "kills": 0, "peak": 200 * MIB, "watched": 199 * MIB, "predicted": 204 * MIB,
    "predicted_over_measured": 1.02, "stderr": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"exit": 4, "stderr": "one line\n"}, None),
        ({"peak": 301 * MIB, "watched": 0}, "above"),
        ({"kills": 1}, "killed"),
        ({"exit": 1}, "exit 1"),
        ({"exit": 3}, "exit 3"),
        ({"watched": 209 * MIB}, "watched"),
        ({"watched": 207 * MIB}, None),
        ({"predicted": 196 * MIB, "predicted_over_measured": 0.98}, "predicted 0.980"),
        ({"predicted": 220 * MIB, "predicted_over_measured": 1.1}, "predicted 1.100"),
        ({"peak": 60 * MIB, "watched": 0, "predicted": 65 * MIB, "predicted_over_measured": 1.09}, None),
        ({"peak": 60 * MIB, "watched": 0, "predicted": 69 * MIB, "predicted_over_measured": 1.15}, "predicted 1.150"),
        ({"stderr": "Traceback (most recent call last):"}, "traceback"),
    ],
)
def test_faults(change: dict[str, Any], fault: str | None) -> None:
    faults = _faults(GOOD | change, 300 * MIB, quiet=True)
    assert (faults == []) if fault is None else (len(faults) == 1 and fault in faults[0]), faults


def test_over_prediction_is_judged_on_a_quiet_machine_only() -> None:
    assert _faults(GOOD | {"predicted_over_measured": 1.2}, 300 * MIB, quiet=False) == []


def test_the_watcher_sees_a_child_of_a_child() -> None:
    import subprocess

    code = "b = bytearray(b'x') * (48 << 20); import time; time.sleep(1)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    watcher = Watcher()
    child = subprocess.Popen([sys.executable, "-c", outer])
    with watcher(child.pid):
        child.wait()
    assert 48 * MIB < watcher.peak < 90 * MIB


@dataclass(frozen=True)
class Fill:
    """A session of one command, which holds more than was planned if ``hostile``."""

    size: int
    hostile: float = 1

    def steps(self, folder: Path) -> Iterator[Step]:
        """Fill memory."""
        yield Step((FILL, "--bytes", f"{self.size}MiB", "--hostile", str(self.hostile)))


def test_a_promise_that_holds_and_a_session_that_is_not_judged_twice(tmp_path: Path) -> None:
    path, end = tmp_path / "lines.jsonl", time.monotonic() + patience(120)
    campaign = Campaign("fill", st.just(Fill(30)), 1, end, path)
    campaign.run(chunks=2)
    summary = campaign.summary()
    assert (summary["commands"], summary["runs"], summary["failed"]) == (1, 3, 0), summary
    assert summary["exits"] == {"0": 2, "3": 1}
    again = Campaign("fill", st.just(Fill(30)), 1, end, path)
    again.run(chunks=2)
    assert again.summary() == summary


def test_a_promise_that_is_broken_is_reduced(tmp_path: Path) -> None:
    sessions = st.builds(Fill, size=st.integers(20, 60), hostile=st.just(1.4))
    campaign = Campaign("fill", sessions, 1, time.monotonic() + patience(120))
    campaign.run(chunks=1, size=2)
    summary = campaign.summary()
    assert summary["failed"] > 0
    (smallest,) = (line["smallest_failure"] for line in campaign.lines if "smallest_failure" in line)
    assert "Fill(size=20, hostile=1.4)" in smallest
