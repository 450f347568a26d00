"""The term that is named when a run took more than was predicted."""

import pytest

from common.memory.footprint import Footprint, Term
from common.memory.plan.explain import excess_text
from common.memory.plan.plan import Plan
from common.memory.process.budget import MIB
from tests.messages import missing, says

PLAN = Plan(
    "bench",
    (),
    Footprint.of(
        [
            Term("libraries", 100 * MIB, "measured"),
            Term("matrix", 50 * MIB, "analytic", ("read", "train")),
            Term("step", 20 * MIB, "replayed", ("train",)),
            Term("scores", 30 * MIB, "analytic", ("train", "evaluate")),
        ]
    ),
)
"""Predicted: read 150, train 200, evaluate 130."""


@pytest.mark.parametrize(
    ("read", "train", "evaluate", "term"),
    [
        (150, 210, 130, "step (20.0 MiB)"),
        (160, 210, 130, "matrix (50.0 MiB)"),
        (150, 210, 140, "scores (30.0 MiB)"),
        (160, 210, 140, "libraries (100.0 MiB)"),
    ],
)
def test_the_term_that_no_other_phase_acquits_was_too_small(read: int, train: int, evaluate: int, term: str) -> None:
    peaks = {"plan": 40 * MIB, "read": read * MIB, "train": train * MIB, "evaluate": evaluate * MIB}
    text = excess_text(PLAN, peaks, 203 * MIB)
    says(text, "train", "210.0 MiB", "203.0 MiB", "7.0 MiB", "200.0 MiB", term)


def test_a_phase_without_a_prediction_is_said() -> None:
    peaks = {"read": 100 * MIB, "write": 220 * MIB}
    says(excess_text(PLAN, peaks, 203 * MIB), "write", "220.0 MiB", "17.0 MiB", "nothing was predicted")
    says(excess_text(None, peaks, 203 * MIB), "write", "220.0 MiB")
    assert missing(excess_text(PLAN, peaks, 203 * MIB), "libraries")
