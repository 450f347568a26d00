import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.memory.process import meter
from common.memory.process.budget import MIB
from common.memory.process.meter import PeakMeter

TOLERANCE = 6 * MIB
"""Bytes that the interpreter and pytest's threads may move meanwhile."""


@pytest.fixture(autouse=True)
def _resettable() -> None:
    if not meter.reset_peak():
        pytest.skip("this kernel does not reset VmHWM")


PHASES = """
import json
import numpy as np
from common.memory.process import glibc, meter
glibc.pin_thresholds()
with meter.PeakMeter() as gauge:
    base = meter.resident()
    with gauge.phase("large"):
        np.ones(128 << 20, np.uint8)
    with gauge.phase("small"):
        np.ones(32 << 20, np.uint8)
print(json.dumps([base, gauge.peak_bytes, gauge.method, *(phase.peak_bytes for phase in gauge.phases)]))
"""


def test_each_phase_has_its_own_peak() -> None:
    """In a fresh process: where others have left holes in the heap, what is freed stays there."""
    done = subprocess.run([sys.executable, "-c", PHASES], capture_output=True, text=True, check=True)
    base, peak, method, large, small = json.loads(done.stdout)
    assert abs(large - base - 128 * MIB) < TOLERANCE
    assert abs(small - base - 32 * MIB) < TOLERANCE
    assert peak == large
    assert method == "hwm"


LAPS = """
import json
import numpy as np
from common.memory.process import glibc, meter
glibc.pin_thresholds()
meter.reset_peak()
base = meter.resident()
np.ones(128 << 20, np.uint8)
first = meter.lap()
np.ones(32 << 20, np.uint8)
second = meter.lap()
whole = meter.lifetime_peak()
meter.reset_peak()
print(json.dumps([base, first, second, whole, meter.lifetime_peak()]))
"""


def test_a_lap_starts_a_new_mark_and_the_peak_goes_on() -> None:
    done = subprocess.run([sys.executable, "-c", LAPS], capture_output=True, text=True, check=True)
    base, first, second, whole, after = json.loads(done.stdout)
    assert abs(first - base - 128 * MIB) < TOLERANCE
    assert abs(second - base - 32 * MIB) < TOLERANCE
    assert whole == first
    assert abs(after - base) < TOLERANCE


CHILDREN = """
import subprocess, sys
from common.memory.process import glibc, meter
child = "import time; block = bytearray(b'x') * (96 << 20); time.sleep(1.5)"
with meter.PeakMeter() as gauge, gauge.phase("child"):
    base = meter.pages().proportional
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


COMPANION = """
import mmap, subprocess, sys
with open(sys.argv[1], "rb") as stream:
    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
sum(mapped[::mmap.PAGESIZE])
child = '''
import mmap, os, sys
from common.memory.process import meter
with open(sys.argv[1], "rb") as stream:
    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
sum(mapped[::mmap.PAGESIZE])
_, private, shared = meter.pages(os.getppid())  # PSS would depend on what else runs
with meter.PeakMeter(companions=(os.getppid(),)) as gauge, gauge.phase("work"):
    block = bytearray(b"x") * (32 << 20)
print(gauge.method, gauge.peak_bytes - meter.lifetime_peak() - private, shared)
'''
subprocess.run([sys.executable, "-c", child, sys.argv[1]], check=True)
"""


def test_of_a_companion_only_what_is_its_own_is_added_to_a_single_process(tmp_path: Path) -> None:
    """The files that both map are in the process's own mark: here one of 8 MiB, as well as the libraries they share."""
    both = tmp_path / "both"
    both.write_bytes(bytes(range(256)) * (8 * MIB // 256))
    done = subprocess.run([sys.executable, "-c", COMPANION, both], capture_output=True, text=True, check=True)
    method, beyond, shared = done.stdout.split()
    assert method == "hwm" and int(shared) >= 8 * MIB
    assert abs(int(beyond)) < 256 << 10


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


def test_a_small_child_of_a_large_parent_is_not_taken_for_another_large_one() -> None:
    code = CHILDREN.replace("(96 << 20); time.sleep(1.5)", "(1 << 20); time.sleep(0.5)")
    code = code.replace("    subprocess", "    ours = bytearray(b'x') * (128 << 20)\n    subprocess")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[1]) < 128 * MIB + 16 * MIB


def test_a_sample_that_ends_in_a_later_phase_belongs_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    gauge = PeakMeter()
    monkeypatch.setattr(meter, "children", lambda: [1])
    gauge.sample()  # a child counts from its second sample on
    for overtaken in (False, True):
        with gauge.phase("later"):
            pass
        gauge._tree_peak, gauge._beside_child = 0, None

        def pages(pid: object = "self", overtaken: bool = overtaken) -> meter.Pages:
            gauge._number += overtaken
            return meter.Pages(1 << 40, 1 << 40, 0)

        with monkeypatch.context() as patched:
            patched.setattr(meter, "pages", pages)
            gauge.sample()
        assert (gauge._tree_peak, gauge._beside_child) == ((0, None) if overtaken else (1 << 41, 1 << 40))
