"""Bounds of the allocator on one 3D training step: memory near the live tensors', speed near PyTorch's.

``make bench-promise_allocator``; 20 runs each, in turn. Other sizes and networks are measured without bounds.
"""

import sys

from common.bench.harness import Bound, Suite

RUNS = 20
PEAK, SECONDS = "result.above_floor_bytes", "result.step_seconds"
STEADY = Bound(PEAK, at_most=0.01, spread=True)
OTHERS = (
    ("segresnet", 32, 2, "bf16", 12),
    ("segresnet", 48, 1, "off", 33),
    ("segresnet", 64, 1, "bf16", 44),
    ("segresnet", 96, 1, "bf16", 137),
    ("basicunet", 64, 1, "off", 72),
)
"""Network, patch, batch, precision, and the slack in MiB that makes the bounded heap "roomy"."""
SINGLE = (("segresnet", 48, 0.6), ("unet", 64, 0.7), ("unet", 96, 0.9), ("basicunet", 64, 0.8))
"""Network and patch of single samples in float32, and the largest share of the time of PyTorch's own kernels."""


def suite() -> Suite:
    """Declare the cases."""
    made = Suite("promise-allocator")
    step = ("-m", "common.bench.allocation", "--network", "segresnet", "--patch", 64)
    for setting in ("stock", "mapped", "heap"):
        bounds = (STEADY,) if setting == "heap" else ()
        made.case(f"step-{setting}", (*step, "--setting", setting), repeats=RUNS, group="step", bounds=bounds)
    made.ratio("bounded heap: peak", "step-heap", "step-stock", Bound(PEAK, at_most=0.75))
    made.ratio("bounded heap: time", "step-heap", "step-stock", Bound(SECONDS, at_most=1.05))
    for network, patch, batch, amp, slack in OTHERS:
        name = f"{network}-{patch}-{batch}-{amp}"
        options = ("--network", network, "--patch", patch, "--batch", batch, "--amp", amp)
        for setting in ("stock", "mapped", "heap", "roomy"):
            chosen = ("heap", "--slack", slack) if setting == "roomy" else (setting,)
            command = ("-m", "common.bench.allocation", *options, "--setting", *chosen)
            made.case(f"{name}-{setting}", command, repeats=3, group=name)
    for network, patch, most in SINGLE:
        name = f"single-{network}-{patch}"
        single = ("-m", "common.bench.allocation", "--network", network, "--patch", patch, "--setting", "heap")
        made.case(f"{name}-torch", (*single, "--plain"), repeats=3, group=name)
        made.case(f"{name}-onednn", single, repeats=3, group=name)
        made.ratio(f"{name}: time", f"{name}-onednn", f"{name}-torch", Bound(SECONDS, at_most=most))
    return made


if __name__ == "__main__":
    sys.exit(suite().main())
