"""The heap peaks near what mapped blocks do; outside of the context everything is as before."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from common.memory.process import glibc
from common.memory.process.bounded_heap import PASSES, SLACK
from common.memory.process.budget import MIB

# Kept blocks between freed ones, and then some that are too large for the holes: what activations do to the heap.
FRAGMENTING = """
import json, os, sys
import torch
import torch._dynamo  # every optimiser loads it
from common.memory.process import glibc, bounded_heap, meter

def blocks(count, mib):
    return [torch.ones(mib << 18) for _ in range(count)]

class Fragmenting(torch.nn.Module):
    def forward(self, x):
        self.kept = blocks(16, 16)[::2]
        return x

class Large(torch.nn.Module):
    def forward(self, x):
        self.kept = blocks(8, 24)
        return x

class Optimizer(torch.optim.SGD):
    def step(self, closure=None):
        blocks(self.held, 24)

def run(setting, held):
    glibc.pin_thresholds()
    network = torch.nn.Sequential(Fragmenting(), Large(), torch.nn.Linear(1, 1))
    optimizer = Optimizer(network.parameters())
    optimizer.held = held
    torch.nn.Linear(1, 1)(torch.ones(1, 1)).sum().backward()

    def step():
        network(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        network[0].kept = network[1].kept = None

    base = meter.resident()
    context = bounded_heap.BoundedHeap(network)
    if setting == "bounded":
        context.__enter__()
    elif setting == "heap":
        glibc.unpin_thresholds()
    peaks, trims = [], []
    for _ in range(6):
        meter.reset_peak()
        step()
        peaks.append(meter.lifetime_peak() - base)
        trims.append(context.trims)
    if setting == "bounded":
        context.__exit__(None, None, None)
        step()
    trims.append(context.trims)
    print(json.dumps({"peaks": peaks, "trims": trims, "left": meter.resident() - base}), flush=True)

for each in sys.argv[1:]:  # each in a fork of this process, which has loaded torch and run none of it
    if (process := os.fork()) == 0:
        setting, held = each.split(":")
        run(setting, int(held))
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0, each
"""


CODE = 8 * MIB
"""Pages of code that a step uses first: 1 to 4.4 MiB, as far as the kernel's cache has those around them."""


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """By setting, and by how many blocks the optimiser's step takes."""
    cases = ["mapped:0", "heap:0", "bounded:0", "mapped:8", "bounded:8"]
    done = subprocess.run(
        [sys.executable, "-c", FRAGMENTING, *cases],
        env=os.environ | glibc.tunables(huge_pages=False, merge=True),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.fixture(scope="module", autouse=True)
def _glibc() -> None:
    library = glibc.libc()
    if library is None or not hasattr(library, "mallinfo2"):
        pytest.skip("no mallinfo2 in this C library")


def test_the_heap_peaks_as_mapped_blocks_do(found: dict[str, dict[str, Any]]) -> None:
    mapped, heap, bounded = found["mapped:0"], found["heap:0"], found["bounded:0"]
    tensors = (8 * 16 + 8 * 24) * MIB
    assert max(mapped["peaks"]) == pytest.approx(tensors, abs=CODE)
    assert max(heap["peaks"]) > tensors + 64 * MIB  # the large blocks lie behind the holes
    assert max(bounded["peaks"]) <= tensors + SLACK
    assert bounded["trims"][:PASSES] == [0] * PASSES
    assert bounded["trims"][-1] == bounded["trims"][-2]  # the hooks are gone
    assert bounded["left"] < SLACK  # and so is the heap


def test_what_the_optimizer_holds_is_in_the_bound(found: dict[str, dict[str, Any]]) -> None:
    """Free pages of the passes are given back before its step takes memory."""
    mapped, bounded = found["mapped:8"], found["bounded:8"]
    tensors = (8 * 16 + 8 * 24 + 8 * 24) * MIB
    assert max(mapped["peaks"]) == pytest.approx(tensors, abs=CODE)
    assert max(bounded["peaks"]) <= tensors + SLACK


# MONAI without its optional libraries, which would take longer to load than the steps take.
STEP = """
from apps.imaging.models.networks.monai import import_monai
from common.bench import allocation
import_monai()
raise SystemExit(allocation.main())
"""


def _step(patch: int, setting: str, *options: str) -> tuple[int, float]:
    """Peak of a real step, and its page faults: of small pages, because it is chance how many huge ones there are."""
    threads = len(os.sched_getaffinity(0))
    environment = glibc.environment(threads) | glibc.tunables(huge_pages=False, merge=setting == "heap")
    command = [sys.executable, "-c", STEP, "--small-pages", "--steps", "5", "--patch", str(patch)]
    command += ["--threads", str(threads), "--setting", setting, *options]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return found["above_floor_bytes"], found["step_faults"]


def test_a_real_step_peaks_near_the_mapped_one_and_reuses_pages() -> None:
    slack = 20
    (peak, mapped_faults), (bounded, faults) = _step(40, "mapped"), _step(40, "heap")
    roomy, roomy_faults = _step(40, "heap", "--slack", str(slack))
    assert peak > 48 * MIB
    assert 0.9 * peak < bounded < peak + SLACK
    assert bounded < roomy < peak + slack * MIB + SLACK
    assert faults < 0.6 * mapped_faults
    assert roomy_faults < 0.6 * faults
