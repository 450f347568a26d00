import os
import subprocess
import sys

import numpy as np
import pytest

from common.memory import guard
from common.memory.budget import MIB

WALLED = """
import sys
import numpy as np
from common.memory import allocator, guard, meter
MIB = 1 << 20
allocator.tame()
assert guard.soft_wall(meter.resident() + 64 * MIB, threads=0, slack=8 * MIB)
np.ones(40 * MIB, np.uint8)
try:
    np.ones(200 * MIB, np.uint8)
except MemoryError as error:
    assert guard.is_out_of_memory(error)
else:
    sys.exit("the wall did not hold")
guard.release()
np.ones(40 * MIB, np.uint8)  # what fitted before the failure fits after it
"""


def test_soft_wall_raises_and_recovers() -> None:
    subprocess.run([sys.executable, "-c", WALLED], check=True)


def test_soft_wall_makes_torch_raise_what_we_recognise() -> None:
    code = """
import sys, torch
from common.memory import allocator, guard, meter
allocator.tame()
torch.ones(8).sum()
guard.soft_wall(meter.resident() + (32 << 20))
try:
    torch.ones(1 << 28)
except RuntimeError as error:
    assert guard.is_out_of_memory(error), error
else:
    sys.exit("the wall did not hold")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("std::bad_alloc"), True),
        (np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("u1")), True),  # type: ignore[attr-defined]
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
        (OSError(12, "Cannot allocate memory"), True),
    ],
)
def test_recognises_allocation_failures(error: BaseException, expected: bool) -> None:
    assert guard.is_out_of_memory(error) is expected


def test_hard_wall_kills_and_is_removed() -> None:
    place = guard.hard_wall(64 * MIB)
    if place is None:
        pytest.skip("no memory cgroup can be written here")
    code = f"""
import os
open({str(place / "cgroup.procs")!r}, "w").write(str(os.getpid()))
block = bytearray(b"x") * (200 << 20)
"""
    try:
        assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    finally:
        os.rmdir(place)
