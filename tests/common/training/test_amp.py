"""The precision that a training is asked for: used, used with a note, or refused, by what the CPU has."""

import pytest

from common.errors import UsageError
from common.memory.costs import cpu
from common.training import amp
from tests.messages import refused, says


def computes(monkeypatch: pytest.MonkeyPatch, **support: cpu.Support) -> None:
    monkeypatch.setattr(cpu, "precisions", lambda library: {"float32": "native", **support})
    monkeypatch.setattr(cpu, "lacks_bfloat16", lambda library: "this CPU does not multiply bfloat16")


def test_what_the_cpu_multiplies_is_used_and_may_be_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    computes(monkeypatch, bf16="native", fp16="native")
    assert [amp.require(name, "cpu") for name in ("off", "bf16", "fp16")] == [None] * 3
    assert amp.likely()


def test_emulated_bfloat16_is_used_with_a_note_and_never_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    computes(monkeypatch, bf16="emulated")
    says(amp.require("bf16", "cpu"), "--amp bf16", "slower")
    assert not amp.likely()


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_precision_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    computes(monkeypatch)
    with refused(UsageError, f"--amp {name}", "CPU", "off"):
        amp.require(name, "cpu")
    assert amp.require("off", "cpu") is None and amp.require(name, "cuda:0") is None
    assert not amp.likely()
