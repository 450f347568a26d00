"""Check the training step on segmentation networks: ``make bench-promise ONLY='training-*'``.

The cases are exact accumulation with Dice losses, a step of SegResNet and DynUNet in a quarter of its memory, and
recovery from refused allocations.
"""

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

from common.bench.harness import Bound, Suite
from common.bench.promise_training import EXACT

if TYPE_CHECKING:
    import torch

MODULE = "apps.imaging.bench.promise.training"
NETWORKS = ("segresnet", "dynunet")
SIDE, BATCH = 96, 4
STEPS = 3
"""The first step creates optimiser states and compiled kernels; the others are timed."""
PLANS = {"plain": (BATCH, "off", "none"), "controlled": (1, "off", "cheap"), "bf16": (1, "bf16", "cheap")}
"""Micro-batch, precision and checkpointing policy."""
QUARTER = Bound("result.above_floor_bytes", at_most=0.25)
AS_FAST = Bound("result.seconds_a_step", at_most=1.35)
RECOVERED = (
    Bound("result.recovered", 50, 50),
    Bound("result.error", at_most=1e-10),
    Bound("result.bits_differ", at_most=0),
    Bound("result.left_mib", at_most=20),
)


def suite() -> Suite:
    """Declare the cases."""
    made = Suite("promise")
    made.case("training-exactness-dice", ("-m", MODULE, "exactness"), bounds=EXACT)
    made.case("training-recoveries", ("-m", MODULE, "recoveries"), bounds=RECOVERED)
    for network in NETWORKS:
        for plan in PLANS:
            made.case(f"training-{network}-{plan}", ("-m", MODULE, "step", network, plan), group=f"training-{network}")
        for plan in list(PLANS)[1:]:
            pair = (f"training-{network}-{plan}", f"training-{network}-plain")
            made.ratio(f"{network}, {plan}: memory above the baseline", *pair, QUARTER)
            made.ratio(f"{network}, {plan}: time", *pair, AS_FAST)
            made.ratio(f"{network}, {plan}: last loss", *pair, Bound("result.last_loss", 0.95, 1.05))
    return made


def step(network: str, plan: str) -> dict[str, object]:
    """Run a few steps on balls in noise; returns the peak above the baseline, seconds and losses."""
    import torch

    from apps.imaging import warm_up
    from apps.imaging.models.networks import registry
    from apps.imaging.training.recipe import Recipe, make_step
    from common.memory.process import glibc
    from common.memory.process.meter import lifetime_peak, reset_peak, resident

    glibc.pin_thresholds()
    warm_up.train()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    complete = registry.arguments(network, {}, in_channels=1, out_channels=2)
    recipe = Recipe(network, complete, (SIDE,) * 3, BATCH, STEPS, None, 1e-3, 0.0, 5.0, "", 0, None, 0)
    micro_batch, amp, checkpoint = PLANS[plan]
    glibc.trim()
    baseline = resident()
    reset_peak()
    _, _, one = make_step(recipe, micro_batch=micro_batch, amp=amp, checkpoint=checkpoint)
    batch = phantom()
    losses, seconds = [], []
    for _ in range(STEPS):
        began = time.perf_counter()
        losses.append(float(one(batch)))
        seconds.append(time.perf_counter() - began)
    return {
        "above_floor_bytes": lifetime_peak() - baseline,
        "seconds_a_step": min(seconds[1:]),
        "losses": losses,
        "last_loss": losses[-1],
    }


def phantom() -> "list[torch.Tensor]":
    """Draw balls of random positions and sizes, brighter than the noise around them.

    Returns
    -------
    list of torch.Tensor
        Images, float32 (4, 1, 96, 96, 96), and classes, uint8 (4, 96, 96, 96).
    """
    import torch

    axis = torch.arange(SIDE, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    inside = torch.zeros(BATCH, SIDE, SIDE, SIDE, dtype=torch.uint8)
    for classes in inside:
        center = torch.randint(24, 72, (3, 1, 1, 1))
        classes[(grid - center).norm(dim=0) < torch.randint(12, 24, ())] = 1
    return [torch.randn(BATCH, 1, SIDE, SIDE, SIDE) + inside[:, None], inside]


def main() -> int:
    """Run one case in this process and print its result as JSON."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("what", choices=["exactness", "recoveries", "step"])
    parser.add_argument("which", nargs="*")
    args = parser.parse_args()
    if args.what == "step":
        result = step(*args.which)
    elif args.what == "recoveries":
        from apps.imaging.bench.promise import recoveries
        from common.memory.process import glibc

        glibc.pin_thresholds()
        result = recoveries.report()
    else:
        from apps.imaging.bench.promise.training_problems import DICE
        from common.bench.exactness import report

        result = report(DICE)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] and not sys.argv[1].startswith("-"):
        sys.exit(main())
    sys.exit(suite().main())
