import subprocess
import sys

import numpy as np
import pytest

from common.memory import allocator, meter
from common.memory.budget import MIB
from common.memory.meter import PeakMeter

TOLERANCE = 6 * MIB
"""What the interpreter and pytest's threads may move meanwhile."""


@pytest.fixture(autouse=True)
def _resettable() -> None:
    if not meter.reset_peak():
        pytest.skip("this kernel does not reset VmHWM")


def test_each_phase_has_its_own_peak() -> None:
    allocator.tame()  # whatever ran before in this process: what is freed goes back at once
    with PeakMeter() as gauge:
        base = meter.resident()
        with gauge.phase("large"):
            np.ones(128 * MIB, np.uint8)
        with gauge.phase("small"):
            np.ones(32 * MIB, np.uint8)
    large, small = (phase.peak_bytes - base for phase in gauge.phases)
    assert abs(large - 128 * MIB) < TOLERANCE
    assert abs(small - 32 * MIB) < TOLERANCE
    assert gauge.peak_bytes == gauge.phases[0].peak_bytes
    assert gauge.method == "hwm"


CHILDREN = """
import subprocess, sys
from common.memory import allocator, meter
child = "import time; block = bytearray(b'x') * (96 << 20); time.sleep(1.5)"
with meter.PeakMeter() as gauge, gauge.phase("child"):
    base = meter.proportional()
    subprocess.run([sys.executable, "-c", child], check=True)
print(gauge.method, gauge.peak_bytes - base)
"""


def test_children_are_counted_by_their_share() -> None:
    """In a fresh process: what a worker has loaded before would be shared with its neighbours."""
    done = subprocess.run([sys.executable, "-c", CHILDREN], capture_output=True, text=True, check=True)
    method, above = done.stdout.split()
    assert method == "pss"
    # Pages that the child shares with its parent leave the parent's own share as it starts.
    assert 96 * MIB - TOLERANCE < int(above) < 96 * MIB + 16 * MIB


def test_timeline_is_bounded() -> None:
    gauge = PeakMeter()
    for _ in range(3 * meter.TIMELINE_POINTS):
        gauge.sample()
    assert len(gauge.timeline) <= meter.TIMELINE_POINTS
    assert gauge.timeline == sorted(gauge.timeline, key=lambda point: point[0])


def test_a_child_that_grows_between_samples_is_not_missed() -> None:
    code = CHILDREN.replace("; time.sleep(1.5)", "")
    code = code.replace("with meter", "meter.FIRST_INTERVAL = 60\nwith meter")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    method, above = done.stdout.split()
    assert method == "pss" and int(above) > 90 * MIB - TOLERANCE


def test_what_a_child_held_for_a_moment_adds_to_what_is_ours() -> None:
    code = CHILDREN.replace("; block", "; time.sleep(0.5); block").replace("time.sleep(1.5)", "del block")
    code = code.replace("    subprocess", "    ours = bytearray(b'x') * (64 << 20)\n    subprocess")
    code = code.replace("with meter", "meter.FIRST_INTERVAL = 0.3\nwith meter")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[1]) > (64 + 96) * MIB - TOLERANCE
