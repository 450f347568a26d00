"""A fork's memory is measured with its parent's, however short it lives."""

import subprocess
import sys

COPIED = """
import sys
from common.memory.process import fork, meter
MIB = 1 << 20
block = bytearray(b"x") * (32 * MIB)

def work():
    block[::4096] = b"x" * len(block[::4096])  # every page is copied
    return {}

with meter.PeakMeter() as gauge:
    gauge._interval = 60  # no sample sees the fork
    with gauge.phase("alone"):
        pass
    with gauge.phase("forked"):
        fork.run(work)
    with gauge.phase("after"):
        pass
peaks = gauge.peaks
both, alone = peaks["forked"] - peaks["alone"], peaks["after"] - peaks["alone"]
assert 30 * MIB <= both <= 40 * MIB, both / MIB
assert alone <= 2 * MIB, alone / MIB
"""


def test_the_pages_that_a_fork_copies_count_twice() -> None:
    done = subprocess.run([sys.executable, "-c", COPIED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
