"""``imaging train --tune``: trials as commands of their own, what ends the search, and a training with the best."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from apps.imaging.cli import parser
from common.errors import UsageError
from common.memory.process import child
from common.memory.process.child import ChildExit, Finished
from common.training.distributed.world import ONE
from tests.apps.imaging.commands.test_train import make
from tests.messages import continued, refused, says
from tests.promise import kept

Runner = Callable[..., Any]
FIXED = ("learning_rate=0.001", "weight_decay=0.0001", "dice=sample", "balance=0", "augment=light")
SMALL = ("--patch", "16", "--layers", "init_filters=8", "--fold", "0/5", "--amp", "off", "--micro-batch", "2")


def test_trials_are_tried_and_the_best_is_trained(tmp_path: Path, run: Runner) -> None:
    balls, out = make(tmp_path / "balls", cases=7), tmp_path / "model"
    options = [*SMALL, "--steps", "8", "--memory", "700MiB", "--cache", "compressed", "--seed", "3"]
    options += [word for pair in FIXED[1:] for word in ("--set", pair)]
    done = run("apps.imaging", "train", balls, "-o", out, "--tune", "2", *options, "--json", "--report")
    assert done.code == 0, done.err
    record = done.record
    kept(record)
    assert json.loads((out / "run.json").read_text()) == record
    found = record["results"]["tuning"]
    assert found["metric"] == "dice" and found["rungs"] == [2, 4, 8] and list(found["space"]) == ["learning_rate"]
    first, second = found["trials"]
    assert first["settings"] == {"learning_rate": 0.002} and first["state"] == "done"
    assert list(first["scores"]) == ["2", "4", "8"] and second["state"] in ("done", "stopped")
    best = found["trials"][found["best"]]
    rate = best["settings"]["learning_rate"]
    says(done.err, "trial 1 of 2", "trial 2 of 2", f"best: trial {best['number'] + 1}", "5 of 5 cases", "before")
    assert f"{rate:g}" in (out / "card.md").read_text() or str(rate) in (out / "card.md").read_text()
    last = [entry["learning_rate"] for entry in record["results"]["history"] if "learning_rate" in entry]
    assert max(last) <= rate and math.isclose(max(last), rate, rel_tol=0.1)
    page = (out / "report.html").read_text()
    assert "Settings that were tried" in page and f"{first['scores']['8']:.4f}" in page
    assert not (out / ".training").exists()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``asked(ends, *words)`` runs a search whose children end as ``ends`` say; returns exit code and their words."""
    balls = make(tmp_path / "balls", cases=7, side=16)

    def call(ends: Sequence[Any], *words: str) -> tuple[int, list[list[str]]]:
        seen: list[list[str]] = []
        left = iter(ends)

        def start(module: str, arguments: Sequence[str], **_: Any) -> Finished:
            seen.append([*map(str, arguments)])
            end = next(left)
            if isinstance(end, BaseException):
                raise end
            code, record = end
            return Finished(ChildExit(code), json.dumps(record).encode(), b"why it ended\n")

        line = [
            "train",
            str(balls),
            "-o",
            str(tmp_path / "out"),
            "--steps",
            "8",
            *(SMALL if "--all-folds" not in words else ()),
            *words,
        ]
        monkeypatch.setattr(child, "run_command", start)
        monkeypatch.setattr("sys.argv", ["imaging", *line])
        args = parser().parse_args(line)
        args.world = ONE
        return args.run(args), seen

    return call


def scored(*scores: float, stopped: bool = False) -> tuple[int, Any]:
    return 0, {"results": {"scores": dict(zip(("2", "4", "8"), scores, strict=False)), "stopped": stopped, "steps": 8}}


TOO_LARGE = (3, {"smallest_feasible_bytes": 3 << 30})
NOT_FINITE = (1, {"error": {"kind": "ArithmeticError", "message": "see the log"}})


def test_each_ending_of_a_trial_has_its_state_and_reason(
    asked: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = [scored(0.2, 0.3, 0.4), TOO_LARGE, NOT_FINITE, scored(0.1, stopped=True), scored(0.3, 0.5, 0.6)]
    code, words = asked([*ends, KeyboardInterrupt()], "--tune", "6")
    assert code == 130
    lines = capsys.readouterr().err.splitlines()
    says(lines[0], "trial 1 of 6", "learning_rate=0.002", "dice 0.4000")
    says(lines[1], "trial 2 of 6", "skipped", "needs 3.00 GiB")
    says(lines[2], "failed", "not finite")
    says(lines[3], "stopped after 2 of 8 eighths")
    says(lines[-1], "same command again")
    log = tmp_path / "out" / ".training" / "tuning.jsonl"
    for number, one in enumerate(words, 1):
        assert one[-6:] == ["-o", str(log.with_name(f"trial-{number}")), "--trial", str(log), "--json", "-q"]
        assert "--tune" not in one and str(tmp_path / "out") not in one
    code, words = asked([scored(0.2, stopped=True), (7, {})], "--tune", "6")
    assert code == 7  # the training with the best settings ended so
    err = capsys.readouterr().err
    continued(err, "5 trials")
    says(err, "best: trial 5, dice 0.6000")
    settings = json.loads(log.read_text().splitlines()[5])["settings"]
    assert words[1][-2:] == ["-o", str(tmp_path / "out")]
    for name, value in settings.items():
        assert f"{name}={value}" in words[1]


def test_what_no_other_trial_could_do_better_ends_the_search(
    asked: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, words = asked([(4, {"error": {"kind": "input", "message": "a case"}})], "--tune", "3")
    assert code == 4 and len(words) == 1
    assert "why it ended" in capsys.readouterr().err
    code, words = asked([TOO_LARGE, NOT_FINITE], "--tune", "2")
    assert code == 1 and len(words) == 2
    says(capsys.readouterr().err.splitlines()[-1], "no trial finished", "--set")


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (("--set", "validation_cases=0"), ("--tune", "validation_cases")),
        (("--set", "schedule=step"), ("schedule",)),
        (("--patch", "17"), ("--patch 17,17,17", "multiple of 4")),
        (("--all-folds", "2"), ("--all-folds", "--tune")),
        (("--plan", "plan.json"), ("--tune", "--plan")),
        (
            [word for pair in FIXED for word in ("--set", pair)],
            ("--tune", "fixes all"),
        ),
    ],
)
def test_what_cannot_be_tuned(asked: Callable[..., Any], words: Sequence[str], facts: Sequence[str]) -> None:
    with refused(UsageError, *facts):
        asked([], "--tune", "2", *words)
