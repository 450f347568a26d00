import json
import subprocess
import sys

import pytest

from common.memory.process import glibc
from common.memory.process.budget import page_size

# Live blocks of 16 MiB between freed ones: what a network's activations do to the heap.
FRAGMENTING = """
import sys, json, ctypes
from common.memory.process import glibc, meter
if sys.argv[1] == "tamed":
    assert glibc.pin_thresholds()
import numpy as np
MIB = 1 << 20
for _ in range(3):
    blocks = [np.ones(16 * MIB, np.uint8) for _ in range(12)]
    kept = blocks[::3]
    del blocks
    kept += [np.ones(20 * MIB, np.uint8) for _ in range(6)]
print(json.dumps(meter.lifetime_peak()))
del kept
print(json.dumps(meter.resident()))
"""


def _measure(how: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", FRAGMENTING, how], capture_output=True, text=True, check=True)
    peak, after = map(json.loads, done.stdout.split())
    return peak, after


def test_tamed_memory_follows_live_memory() -> None:
    if not glibc.pin_thresholds():
        pytest.skip("no mallopt in this C library")
    live = max(12 * 16, 4 * 16 + 6 * 20) << 20
    peak, after = _measure("tamed")
    # The list comprehension of the next round starts while the last round's 4 + 6 blocks are still bound.
    assert peak < live + ((4 * 16 + 6 * 20) << 20) + (48 << 20)
    assert after < 64 << 20
    assert after <= _measure("stock")[1] + 32 * page_size()  # where the interpreter's own pages lie differs


def test_environment_keeps_foreign_tunables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1:glibc.malloc.hugetlb=2")
    variables = glibc.environment(3) | glibc.tunables(huge_pages=True)
    assert variables["GLIBC_TUNABLES"] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    assert variables["OMP_NUM_THREADS"] == variables["OPENBLAS_NUM_THREADS"] == "3"
    merging = glibc.tunables(huge_pages=False, merge=True)["GLIBC_TUNABLES"]
    assert merging.split(":")[2:] == ["glibc.malloc.tcache_count=0", "glibc.malloc.mxfast=0"]
    assert glibc.tunables(huge_pages=False) == {}
