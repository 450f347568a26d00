"""Measure one 3D training step under one setting of the allocator, in a fresh process.

``python -m common.bench.allocation --setting heap --network segresnet --patch 64`` ends with one JSON line: peak above
the baseline, bytes left after the step, seconds, CPU seconds and page faults of a step. ``stock`` is PyTorch with the
allocator's own defaults.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from typing import TYPE_CHECKING, Any, cast

from common.memory.process import glibc, meter
from common.memory.process.bounded_heap import PASSES, BoundedHeap
from common.memory.process.budget import MIB
from common.training.step import TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn

SETTINGS = ("stock", "mapped", "heap")
NETWORKS = ("segresnet", "unet", "basicunet")
CLASSES = 3


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Mean cross-entropy over voxels (``common.training.step.Loss``)."""

    def counts(self, batch: Sequence["Tensor"], /) -> tuple["Tensor", ...]:
        """Return the number of voxels, the denominator."""
        import torch

        return (torch.tensor(batch[1].numel()),)

    def sums(self, outputs: "Tensor", batch: Sequence["Tensor"], /) -> tuple["Tensor", ...]:
        """Return the cross-entropy summed over voxels."""
        from torch.nn import functional

        return (functional.cross_entropy(outputs, batch[1], reduction="sum"),)


def build(name: str, *, plain: bool = False) -> "nn.Module":
    """Build a small network of MONAI's.

    Parameters
    ----------
    name
        One of ``NETWORKS``.
    plain
        Leave out the workaround for 3D convolutions of single samples.
    """
    from common.training.conv3d_workaround import speed_up

    nets = import_module("monai.networks.nets")
    if name == "segresnet":
        shape = {"blocks_down": (1, 2, 2), "blocks_up": (1, 1)}
        network = nets.SegResNet(init_filters=16, in_channels=1, out_channels=CLASSES, **shape)
    elif name == "unet":
        network = nets.UNet(3, 1, CLASSES, (16, 32, 64, 128), (2, 2, 2), num_res_units=2)
    else:
        network = nets.BasicUNet(3, 1, CLASSES, features=(16, 16, 32, 64, 128, 16))
    return cast("nn.Module", network if plain else speed_up(network))


def train(network: "nn.Module", *, patch: int, batch: int, amp: str, steps: int) -> list[tuple[float, float, int]]:
    """Run steps on random data.

    Parameters
    ----------
    patch
        Side of the cubic patches in voxels.

    Returns
    -------
    list of tuple
        Wall-clock seconds, CPU seconds and page faults of each step.
    """
    import torch

    step = TrainingStep(network, torch.optim.AdamW(network.parameters(), fused=True), CrossEntropy(), batch, amp)
    images = torch.randn(batch, 1, patch, patch, patch)
    classes = torch.randint(CLASSES, (batch, patch, patch, patch))
    times = []
    for _ in range(steps):
        began, busy, faults = time.perf_counter(), time.process_time(), _faults()
        step([images, classes])
        times.append((time.perf_counter() - began, time.process_time() - busy, _faults() - faults))
    return times


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the peak, and a step's times in the steady state.

    The first step and those in which the bounded heap still measures its working set are left out of the times.
    """
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    train(build(args.network, plain=args.plain), patch=32, batch=1, amp=args.amp, steps=1)
    glibc.trim()
    baseline = meter.resident()
    meter.reset_peak()
    network = build(args.network, plain=args.plain)
    heap = BoundedHeap(network, slack=args.slack * MIB) if args.setting == "heap" else nullcontext()
    with heap:
        times = train(network, patch=args.patch, batch=args.batch, amp=args.amp, steps=args.steps)
        left = meter.resident() - baseline
    wall, busy, faults = zip(*times[1 + PASSES :], strict=True)
    return {
        "above_floor_bytes": meter.lifetime_peak() - baseline,
        "left_bytes": left,
        "step_seconds": median(wall),
        "step_cpu_seconds": median(busy),
        "step_faults": median(faults),
        "trims": getattr(heap, "trims", 0),
    }


def main() -> int:
    """Restart with the environment that the setting needs, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", choices=SETTINGS, default="stock")
    parser.add_argument("--network", choices=NETWORKS, default="segresnet")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--amp", choices=("off", "bf16"), default="off")
    parser.add_argument("--slack", type=int, default=0, metavar="MIB", help="bytes the bounded heap may keep free")
    parser.add_argument(
        "--small-pages", action="store_true", help="4 KiB pages, so that page faults count zeroed memory"
    )
    parser.add_argument("--plain", action="store_true", help="convolve single samples with PyTorch's own kernels")
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    variables = glibc.environment(args.threads)
    if args.setting != "stock":
        variables |= glibc.tunables(huge_pages=not args.small_pages, merge=args.setting == "heap")
    if any(os.environ.get(name) != value for name, value in variables.items()):
        os.environ.update(variables)
        os.execv(sys.executable, [sys.executable, "-m", "common.bench.allocation", *sys.argv[1:]])
    if args.setting != "stock":
        glibc.pin_thresholds()
    sys.stdout.write(json.dumps(measure(args)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
