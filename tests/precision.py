"""Precisions that a test needs, and a CPU that lacks them."""

import pytest

from common.memory.costs import cpu

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "OV_CPU_MAX_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Variables under which PyTorch and OpenVINO compute as on a CPU without AVX-512."""


def needs(library: cpu.Library, precision: str) -> None:
    """Skip where this CPU lacks the precision, also where all else is required: nothing can be installed for it.

    PyTorch may emulate it, as ``--amp`` allows; OpenVINO may not.
    """
    support = cpu.precisions(library).get(precision)
    if support is None or (library == "openvino" and support != "native"):
        pytest.skip(f"{precision}: {cpu.lacks_bfloat16(library)}")
