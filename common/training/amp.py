"""Whether bfloat16 pays on this CPU: a small measurement of time and of numbers, cached as a probe.

Autocast is a win where the CPU multiplies bfloat16 (2x on AVX512-BF16), and tens of times slower where a kernel has
to emulate it, so it is tried before it is used. float16 is refused where oneDNN has no kernels for it (12x slower).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UsageError
from common.memory.costs.probes import NotAvailable, Probe

if TYPE_CHECKING:
    import torch

LEAST_GAIN = 0.8
"""float32 time over bfloat16 time below which bfloat16 is clearly slower; it saves memory in any case."""
LARGEST_ERROR = 0.02
"""Relative error of the gradient of a convolution that is still rounding, not a broken kernel."""
_FLAGS = ("avx512_bf16", "amx_bf16")
_RUNS = 8
"""Of each; the fastest counts."""


def likely() -> bool:
    """Whether the CPU says that it multiplies bfloat16; read from ``/proc/cpuinfo``, without importing torch."""
    try:
        return any(flag in Path("/proc/cpuinfo").read_text().split() for flag in _FLAGS)
    except OSError:
        return False


def require(name: str, device: str) -> None:
    """Refuse a precision that this device has no kernels for.

    Raises
    ------
    UsageError
        float16 on a CPU for which oneDNN has no kernels; oneDNN is asked, not the CPU's name.
    """
    import torch

    if name == "fp16" and device == "cpu" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise UsageError("fp16: oneDNN has no float16 kernels for this CPU; bf16 or off will do")


def precision(name: str) -> "torch.dtype | None":
    """The type that autocast computes in; ``None`` for ``"off"``."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[name]


def probe(threads: int) -> Probe:
    """The check as a probe; it fails where bfloat16 does not pay, and says why."""
    return Probe.of("common.training.amp:check", libraries=("torch",), threads=threads)


def check() -> dict[str, float]:
    """Time a 3D convolution, forward and backward, in both precisions; called in a probe's child.

    Raises
    ------
    NotAvailable
        If bfloat16 is slower, or its gradient is off by more than rounding.
    """
    import time

    import torch

    torch.set_num_threads(1)  # two wait for each other where others use the machine: 0.3 to 3.9 times was read then
    torch.manual_seed(0)
    network = torch.nn.Conv3d(16, 16, 3, padding=1)
    image = torch.randn(2, 16, 32, 32, 32)
    times: dict[bool, list[float]] = {False: [], True: []}
    gradients: dict[bool, torch.Tensor | None] = {}
    for _ in range(_RUNS):
        for enabled in (False, True):  # in turn, so that other load on the machine meets both
            network.zero_grad(set_to_none=True)
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                result = network(image)
            result.float().square().mean().backward()
            times[enabled].append(time.perf_counter() - began)
            gradients[enabled] = network.weight.grad
    exact, rounded = gradients[False], gradients[True]
    assert exact is not None and rounded is not None
    gain, error = min(times[False]) / min(times[True]), float((rounded - exact).norm() / exact.norm())
    if gain < LEAST_GAIN:
        raise NotAvailable(f"bf16 is slower than float32 here ({gain:.2f}x)")
    if error > LARGEST_ERROR:
        raise NotAvailable(f"bf16 gradients are off by {error:.1%} here")
    return {"gain": gain, "error": error}
