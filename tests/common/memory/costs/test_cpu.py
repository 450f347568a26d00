"""Precisions of a CPU, by its flags and by what the libraries themselves say under limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.memory.costs import cpu
from common.memory.costs.probes import Probe

ROOT = Path(__file__).resolve().parents[4]
AVX2 = frozenset({"avx", "avx2", "fma", "f16c"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
NATIVE = AVX512 | {"avx512_vnni", "avx512_bf16"}


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {name for names in (*cpu.LIMITS.values(), cpu.OTHER_LIMITS) for name in names}:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("flags", "limit", "torch", "openvino"),
    [
        (AVX2, "", None, None),
        (AVX512, "", "emulated", "emulated"),
        (NATIVE, "", "native", "native"),
        (AVX512 | {"amx_bf16"}, "", "native", "native"),
        (NATIVE, "ONEDNN_MAX_CPU_ISA=AVX2", None, None),
        (NATIVE, "DNNL_MAX_CPU_ISA=avx2", None, None),
        (NATIVE, "ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI", "emulated", "emulated"),
        (NATIVE, "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16", "native", "native"),
        (NATIVE, "ONEDNN_MAX_CPU_ISA=DEFAULT", "native", "native"),
        (NATIVE, "OV_CPU_MAX_ISA=AVX2", "native", None),
    ],
)
def test_bfloat16_by_flags_and_limits(
    monkeypatch: pytest.MonkeyPatch, flags: frozenset[str], limit: str, torch: str | None, openvino: str | None
) -> None:
    monkeypatch.setattr(cpu, "flags", lambda: flags)
    if limit:
        monkeypatch.setenv(*limit.split("="))
    found = {library: cpu.precisions(library) for library in cpu.LIMITS}
    assert (found["torch"].get("bf16"), found["openvino"].get("bf16")) == (torch, openvino)
    assert all(each["float32"] == each["int8"] == "native" for each in found.values())
    assert "fp16" not in found["torch"]
    if found["openvino"].get("bf16") != "native":
        why = cpu.lacks_bfloat16("openvino")
        assert (limit if limit else "avx512_bf16") in why


def test_float16_is_of_cpus_that_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "flags", lambda: NATIVE | {"avx512_fp16"})
    assert cpu.precisions("torch")["fp16"] == "native"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert "fp16" not in cpu.precisions("torch")


@pytest.mark.parametrize("limit", ["", "AVX2", "AVX512_CORE", "AVX512_CORE_BF16"])
def test_onednn_says_the_same(limit: str) -> None:
    code = (
        "import json, torch; from common.memory.costs import cpu; found = cpu.precisions('torch');"
        "own = torch.ops.mkldnn; print(json.dumps([found, own._is_mkldnn_bf16_supported(),"
        " own._is_mkldnn_fp16_supported()]))"
    )
    environment = os.environ | ({"ONEDNN_MAX_CPU_ISA": limit} if limit else {})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    found, bf16, fp16 = json.loads(done.stdout)
    assert ("bf16" in found, "fp16" in found) == (bf16, fp16)


def test_a_limit_asks_for_other_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe.of("common.training.amp:check", libraries=("torch",))
    keys = {probe.key}
    for name in ("ONEDNN_MAX_CPU_ISA", "OV_CPU_MAX_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.setenv(name, "avx2")
        keys.add(probe.key)
    assert len(keys) == 4
