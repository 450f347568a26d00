"""Mixed precision: a probe measures whether bfloat16 is worthwhile on this CPU, in time and in accuracy.

Autocast is faster where the CPU multiplies bfloat16 (2x on AVX512-BF16) and slower than float32 elsewhere, so the
planner uses it only after the probe. A precision requested by the user is refused if oneDNN has no kernels for it.
"""

from typing import TYPE_CHECKING

from common.errors import UsageError
from common.memory.costs import cpu
from common.memory.costs.probes import NotAvailable, Probe

if TYPE_CHECKING:
    import torch

LEAST_GAIN = 0.8
"""bfloat16 counts as slower if float32 time over bfloat16 time is below this; it saves memory in any case."""
LARGEST_ERROR = 0.02
"""Largest relative error of a convolution's gradient that rounding explains; beyond it the kernel is broken."""
_RUNS = 8
"""Runs per precision; the fastest counts."""


def likely() -> bool:
    """Return True if this CPU multiplies bfloat16 and PyTorch may use it; torch is not imported."""
    return cpu.precisions("torch").get("bf16") == "native"


def require(name: str, device: str) -> str | None:
    """Check the precision of ``--amp`` before anything is loaded for it.

    Parameters
    ----------
    name
        ``"off"``, ``"bf16"`` or ``"fp16"``.
    device
        ``--device``; nothing is checked for CUDA devices.

    Returns
    -------
    str or None
        A warning for the user if the precision is emulated, which AVX-512 does at 0.6 of float32's speed.

    Raises
    ------
    UsageError
        oneDNN has no kernels of this precision for this CPU. PyTorch's own are 56 times (bf16) and 12 times (fp16)
        slower than float32.
    """
    support = cpu.precisions("torch")
    if name == "off" or device.startswith("cuda") or support.get(name) == "native":
        return None
    if name == "fp16":
        raise UsageError("--amp fp16: oneDNN has no float16 kernels for this CPU; use off, or bf16 if it has that")
    if name not in support:
        raise UsageError(f"--amp bf16: {cpu.lacks_bfloat16('torch')}; use off")
    return f"--amp bf16: {cpu.lacks_bfloat16('torch')}; emulated, it saves memory and is slower than off"


def precision(name: str) -> "torch.dtype | None":
    """Return the type that autocast computes in; ``None`` for ``"off"``."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[name]


def probe(threads: int) -> Probe:
    """Return ``check`` as a probe; it fails with a reason where bfloat16 is not worthwhile."""
    return Probe.of("common.training.amp:check", libraries=("torch",), threads=threads)


def check() -> dict[str, float]:
    """Time a 3D convolution, forward and backward, in both precisions; called in a probe's child.

    Raises
    ------
    NotAvailable
        bfloat16 is slower, or its gradient differs by more than rounding.
    """
    import time

    import torch

    torch.set_num_threads(1)  # two threads wait for each other on a loaded machine: ratios of 0.3 to 3.9 were measured
    torch.manual_seed(0)
    network = torch.nn.Conv3d(16, 16, 3, padding=1)
    image = torch.randn(2, 16, 32, 32, 32)
    times: dict[bool, list[float]] = {False: [], True: []}
    gradients: dict[bool, torch.Tensor | None] = {}
    for _ in range(_RUNS):
        for enabled in (False, True):  # in turn, so that other load on the machine affects both
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
