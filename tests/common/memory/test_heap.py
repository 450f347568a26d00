"""The heap stays near what is live; outside of the context everything is as before."""

import json
import subprocess
import sys

import pytest

from common.memory import allocator
from common.memory.budget import MIB
from common.memory.heap import SLACK

# Kept blocks of 16 MiB between freed ones, made inside a layer: what a network's activations do to the heap.
FRAGMENTING = """
import json, sys
import torch
from common.memory import allocator, heap, meter

class Fragmenting(torch.nn.Module):
    def forward(self, x):
        blocks = [torch.ones(16 << 18) for _ in range(12)]
        self.kept = blocks[::3]
        return x

allocator.tame()
layer = torch.nn.Sequential(Fragmenting(), torch.nn.Linear(1, 1))
torch.nn.Linear(1, 1)(torch.ones(1, 1)).sum().backward()
before = meter.resident()
with heap.BoundedHeap(layer, slack=int(sys.argv[1])) as bounded:
    layer[0](torch.ones(1, 1))
    inside = meter.resident() - before
    layer(torch.ones(1, 1)).sum().backward()
    looked = bounded.trims
layer[0].kept = None
layer(torch.ones(1, 1)).sum().backward()
allocator.trim()  # holes that the kept blocks left in the heap may have been used again
print(json.dumps({"inside": inside, "trims": looked, "after": bounded.trims, "mapped": meter.resident() - before}))
"""


def _run(slack: int) -> dict[str, int]:
    command = [sys.executable, "-c", FRAGMENTING, str(slack)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module", autouse=True)
def _glibc() -> None:
    library = allocator.libc()
    if library is None or not hasattr(library, "mallinfo2"):
        pytest.skip("no mallinfo2 in this C library")


def test_free_pages_go_back_when_they_add_up() -> None:
    bounded, unbounded = _run(SLACK), _run(1 << 40)
    assert bounded["trims"] >= 1 and unbounded["trims"] == 0
    assert bounded["inside"] <= 4 * 16 * MIB + SLACK
    assert unbounded["inside"] >= 10 * 16 * MIB  # the freed blocks between the kept ones
    assert bounded["after"] == bounded["trims"]  # the hooks are gone
    assert bounded["mapped"] < 4 * 16 * MIB + 8 * MIB  # all but the kept blocks


def test_a_real_step_stays_near_the_mapped_one() -> None:
    peaks = {}
    for setting in ("mapped", "heap"):
        command = [sys.executable, "-m", "common.bench.allocation", "--setting", setting, "--patch", "40"]
        done = subprocess.run([*command, "--steps", "3"], capture_output=True, text=True, check=True)
        peaks[setting] = json.loads(done.stdout)["above_floor_bytes"]
    assert peaks["mapped"] > 48 * MIB
    assert 0.9 * peaks["mapped"] < peaks["heap"] < peaks["mapped"] + SLACK + 8 * MIB
