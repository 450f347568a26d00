"""``imaging train``'s options are checked when they are made, before a data set is read."""

from pathlib import Path
from typing import Any

import pytest

from apps.imaging.cli import parser
from apps.imaging.training.options import HYPER, TrainOptions
from common.errors import UsageError
from tests.messages import refused


def options(*arguments: str) -> TrainOptions:
    """The options of a command line; its data set does not exist."""
    args = parser().parse_args(["train", "absent", "-o", "model", *arguments])
    made: TrainOptions = args.command.request(args)
    return made


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--set", "batch=0"], ["batch", 1]),
        (["--set", "clip=-1"], ["--set clip=-1.0", "negative"]),
        (["--set", "learning_rate=inf"], ["--set learning_rate=inf"]),
        (["--set", "mirror=xw"], ["mirror", "x", "y", "z"]),
        (["--set", "dice=voxel"], ["--set dice=voxel", "sample", "batch"]),
        (["--set", "augment=heavy"], ["--set augment=heavy", "none", "light", "full"]),
        (["--set", "augment=full", "--synthesize", "brain"], ["--set augment", "--synthesize"]),
        (["--set", "optimizer=sgd9"], ["sgd9"]),
        (["--set", "balance=2"], ["--set balance=2.0", "from 0", "to 1"]),
        (["--set", "speed=9"], ["--set speed=9", "learning_rate"]),
        (["--micro-batch", "3"], ["--micro-batch", "batch of 2"]),
        (["--accumulate", "3"], ["--accumulate", "batch of 2"]),
    ],
)
def test_values_out_of_range_are_refused(arguments: list[str], facts: list[Any]) -> None:
    options()
    with refused(UsageError, *facts) as refusal:
        options(*arguments)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "batch", "micro_batch"),
    [
        ([], 2, None),
        (["--micro-batch", "1"], 2, 1),
        (["--accumulate", "2"], 2, 1),
        (["--micro-batch", "3", "--accumulate", "4"], 12, 3),
        (["--set", "batch=5", "--accumulate", "2"], 5, 3),
    ],
)
def test_batch_and_micro_batch(arguments: list[str], batch: int, micro_batch: int | None) -> None:
    made = options(*arguments)
    assert (made.batch, made.micro_batch) == (batch, micro_batch)


def test_auto_leaves_the_choice_to_the_planner() -> None:
    made = options()
    assert made.amp is made.cache is None
    fixed = options("--amp", "off", "--cache", "disk")
    assert (fixed.amp, fixed.cache) == ("off", "disk")
    assert {name: getattr(made, name) for name in HYPER} == dict(HYPER)


def test_the_card_tells_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["imaging", "train", "/home/someone/data", "-o", "models/first", "--fold", "1/5"])
    command = options().command
    assert command == "imaging train data -o first --fold 1/5"
    assert options().dataset == Path("absent")
