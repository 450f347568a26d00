"""Precisions in which this CPU computes: its feature flags, and environment variables that limit their use.

A library that lacks a precision may compute in another one without a word: on a CPU with AVX2 only, OpenVINO
compiles a network for bfloat16 and runs it in float32. So a precision is checked here before it is used.
"""

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

Support = Literal["native", "emulated"]
Library = Literal["torch", "openvino"]

LIMITS: Mapping[Library, tuple[str, ...]] = {
    "torch": ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    "openvino": ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OV_CPU_MAX_ISA"),
}
"""Variables that keep a library from instruction sets. OpenVINO's ``OPTIMIZATION_CAPABILITIES`` know of the last only:
under ``ONEDNN_MAX_CPU_ISA=AVX2`` they still list BF16, and compiling for it fails (OpenVINO 2026.4)."""
OTHER_LIMITS = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "OPENBLAS_CORETYPE")
"""Variables that choose other kernels in the same precisions."""

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_FP16_FLAGS = frozenset({"avx512_fp16", "amx_fp16"})
_AVX512_CORE = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
"""Flags that oneDNN's kernels for emulated bfloat16 need: it has none for AVX2."""
_BELOW_AVX512 = frozenset({"SSE41", "SSE42", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"})
_BELOW_BF16 = _BELOW_AVX512 | {"AVX512_CORE", "AVX512_CORE_VNNI"}
_BELOW_FP16 = _BELOW_BF16 | {"AVX512_CORE_BF16"}


@cache
def flags() -> frozenset[str]:
    """Feature flags of the first CPU in ``/proc/cpuinfo``; empty where that cannot be read."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def facts() -> list[str]:
    """Facts that decide which kernels run, and with them their workspaces: the flags, and the limits that are set."""
    return [" ".join(sorted(flags())) or platform.machine(), *limits()]


def limits() -> list[str]:
    """The limits that are set, as ``NAME=VALUE``."""
    names = sorted({name for library in LIMITS.values() for name in library} | {*OTHER_LIMITS})
    return [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]


def precisions(library: Library) -> dict[str, Support]:
    """Support of ``library`` for each precision on this CPU; a precision is absent where it has no kernels.

    ``"emulated"``: truly in that precision, but slower than in float32 (bfloat16 in AVX-512: half the speed). int8
    needs no VNNI: in AVX2 alone the shipped model's mean Dice is 0.8803 instead of 0.8808. Neither library is imported.
    """
    allowed = {_level(name) for name in LIMITS[library]}
    result: dict[str, Support] = {"float32": "native", "int8": "native"}
    if flags() >= _AVX512_CORE and not allowed & _BELOW_AVX512:
        result["bf16"] = "emulated"
    if flags() & _BF16_FLAGS and not allowed & _BELOW_BF16:
        result["bf16"] = "native"
    if flags() & _FP16_FLAGS and not allowed & _BELOW_FP16:
        result["fp16"] = "native"
    return result


def lacks_bfloat16(library: Library) -> str:
    """Why bfloat16 is not native, as the end of a sentence that begins with what was asked for."""
    if not flags() & _BF16_FLAGS:
        return "this CPU does not multiply bfloat16 (it has neither avx512_bf16 nor amx_bf16)"
    names = [name for name in LIMITS[library] if _level(name) in _BELOW_BF16]
    return f"{names[0]}={os.environ[names[0]]} rules bfloat16 out"


def _level(name: str) -> str:
    """An instruction set's name as oneDNN writes it; empty: no limit."""
    return os.environ.get(name, "").upper()
