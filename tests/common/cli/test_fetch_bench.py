from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(("application", "known"), [("recsys", "ml-1m"), ("imaging", "msd-hippocampus")])
def test_fetch_lists_its_own_sets(application: str, known: str, run: Callable[..., Any]) -> None:
    listed = run(f"apps.{application}", "fetch")
    assert listed.code == 0 and f"{known}: " in listed.out and "licence: " in listed.out
    unknown = run(f"apps.{application}", "fetch", "no-such-set")
    assert unknown.code == 2 and known in unknown.err


def test_bench_names_its_cases(run: Callable[..., Any], dataset: Callable[[str], Path]) -> None:
    env = {"PEAKLINE_DATA": str(dataset("ml-1m").parent)}
    listed = run("apps.recsys", "bench", "--list", "--only", "recsys-train-ml-1m,implicit*", env=env)
    assert listed.code == 0 and listed.out.split() == ["recsys-train-ml-1m", "implicit-ml-1m"]
