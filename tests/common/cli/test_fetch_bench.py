import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps.recsys.data import synthetic


@pytest.mark.parametrize(("application", "known"), [("recsys", "ml-1m"), ("imaging", "msd-hippocampus")])
def test_fetch_lists_its_own_sets(application: str, known: str, run: Callable[..., Any]) -> None:
    listed = run(f"apps.{application}", "fetch")
    assert listed.code == 0 and f"{known}: " in listed.out and "licence: " in listed.out
    unknown = run(f"apps.{application}", "fetch", "no-such-set")
    assert unknown.code == 2 and known in unknown.err


def test_bench_names_its_cases(run: Callable[..., Any], dataset: Callable[[str], Path]) -> None:
    env = {"PEAKLINE_DATA": str(dataset("ml-1m").parent)}
    listed = run("apps.recsys", "bench", "--full", "--list", "--only", "recsys-train-ml-1m,implicit*", env=env)
    assert listed.code == 0 and listed.out.split() == ["recsys-train-ml-1m", "implicit-ml-1m"]


def test_the_quick_bench_lists_its_commands(run: Callable[..., Any], tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    listed = run("apps.recsys", "bench", rows, "--list", "--memory", "300MiB", "--threads", 1)
    commands = [line.split() for line in listed.out.splitlines()]
    assert [words[:2] for words in commands] == [["recsys", step] for step in ("train", "evaluate", "recommend")]
    assert str(rows) in commands[0] and all(
        words[-4:] == ["--memory", "300MiB", "--threads", "1"] for words in commands
    )
    (tmp_path / "dataset.json").touch()
    studies = run("apps.imaging", "bench", "--quick", "a.nii.gz", "b", "-m", "hippocampus", "--list")
    assert [line.split()[:4] for line in studies.out.splitlines()] == [["imaging", "infer", "a.nii.gz", "b"]]
    trained = run("apps.imaging", "bench", tmp_path, "--list", "--steps", 7)
    assert [line.split()[1] for line in trained.out.splitlines()] == ["train", "infer", "evaluate"]
    given = run("apps.imaging", "bench", tmp_path, "--list", "-m", "hippocampus")
    assert [line.split()[1] for line in given.out.splitlines()] == ["infer", "evaluate"]


@pytest.mark.parametrize(
    "options",
    [("--only", "a"), ("--again",), ("--repeats", 0), ("--threads", 0), ("--quick", "--full"), ("--memory", "much")],
)
def test_bench_refuses_what_does_not_go_together(options: tuple[Any, ...], run: Callable[..., Any]) -> None:
    refused = run("apps.recsys", "bench", "rows.csv", *options)
    assert refused.code == 2 and "Traceback" not in refused.err


def test_the_quick_bench_measures_and_says_what_failed(run: Callable[..., Any], tmp_path: Path) -> None:
    rows, _ = synthetic.write(tmp_path, users=120, items=80)
    done = run("apps.recsys", "bench", rows, "--model", "popularity", "--memory", "300MiB", "--repeats", 2, "--json")
    measured = json.loads(done.out)["rows"]
    assert done.code == 0 and [row["step"] for row in measured] == ["train", "evaluate", "recommend"], done.err
    for row in measured:
        assert 0 < row["measured_bytes"] <= row["ceiling_bytes"] == 300 << 20
        assert 0.8 < row["predicted_bytes"] / row["measured_bytes"] < 1.3
        assert row["seconds"] > 0 and row["processor_seconds"] > 0 and row["quality"]
    small = run("apps.recsys", "bench", rows, "--memory", "48MiB")
    assert small.code == 3 and "exit 3" in small.out and "MiB would do" in small.out
    missing = run("apps.recsys", "bench", tmp_path / "none.csv", "--memory", "300MiB", "--json")
    (row,) = json.loads(missing.out)["rows"]
    assert missing.code == 4 == row["exit_code"] and row["quality"]
