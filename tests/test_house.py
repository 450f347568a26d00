"""The rules of the house, and what every command line owes its user before it does anything."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests import house
from tests.machine import processor_seconds


def test_no_rule_is_broken() -> None:
    assert list(house.problems()) == []


def test_arrows_are_seen() -> None:
    model = "apps/imaging/models/model_folder.py"
    assert house.forbidden("common/engines/base.py", model) is not None
    assert house.forbidden("apps/recsys/cli.py", model) is not None
    assert house.forbidden("apps/imaging/volumes/nifti.py", model) is not None
    assert house.forbidden("apps/imaging/planning/infer.py", "apps/imaging/warm_up.py") is not None
    assert house.forbidden("common/memory/process/guard.py", "common/files.py") is not None
    assert house.forbidden("common/memory/process/guard.py", "common/memory/plan/planner.py") is not None
    assert house.forbidden("common/cli/main.py", "common/bench/harness.py") is not None
    assert house.forbidden("apps/recsys/cli.py", "common/memory/process/guard.py") is None
    assert house.forbidden("apps/imaging/inference/pipeline.py", model) is None


def test_circles_are_found() -> None:
    assert house.circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert house.circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_docs_draw_the_table_of_arrows() -> None:
    assert house.mermaid() in (house.ROOT / "docs" / "architecture.md").read_text("utf-8")


@pytest.mark.parametrize("application", ["recsys", "imaging"])
def test_help_is_instant(application: str, run: Callable[..., Any]) -> None:
    ended = run(f"apps.{application}", "--help")
    assert ended.code == 0 and "train" in ended.out
    seconds = processor_seconds([sys.executable, "-m", f"apps.{application}", "--help"])
    # Nine times the interpreter's own, and processor time, since others may use the machine. The import list below is
    # the exact claim.
    assert seconds < 20 * processor_seconds([sys.executable, "-c", "pass"])


@pytest.mark.parametrize("application", ["recsys", "imaging"])
def test_parsing_loads_nothing_heavy(application: str) -> None:
    code = f"import sys, apps.{application}.cli as c; c.parser(); print(sorted({house.HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=house.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("application", ["recsys", "imaging"])
def test_no_command_is_a_usage_error(application: str, run: Callable[..., Any]) -> None:
    assert run(f"apps.{application}").code == 2
