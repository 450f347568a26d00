"""A fork's memory is measured with its parent's, however short it lives."""

import subprocess
import sys
from pathlib import Path

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

COLLECTED = """
import gc
from common.memory.process import fork, meter
MIB = 1 << 20
objects = [[] for _ in range(500_000)]
with meter.PeakMeter() as gauge:
    with gauge.phase("alone"):
        pass
    with gauge.phase("forked"):
        fork.run(lambda: {"unreachable": gc.collect()})
grown = gauge.peaks["forked"] - gauge.peaks["alone"]
assert grown <= 8 * MIB, grown / MIB
"""

MAPPED = """
import mmap, sys
file = open(sys.argv[1], "rb")
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
sum(mapped[::4096])
"""
WAITING = "print(flush=True)\ninput()\n"


def _measured(code: str, *arguments: object) -> None:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_pages_that_a_fork_copies_count_twice() -> None:
    _measured(COPIED)


def test_a_collection_in_a_fork_copies_no_objects_of_its_parent() -> None:
    _measured(COLLECTED)


def test_files_that_the_parent_maps_count_whoever_else_maps_them(tmp_path: Path) -> None:
    file = tmp_path / "library"
    file.write_bytes(bytes(48 << 20))
    _measured(MAPPED + COPIED, file)
    other_code = [sys.executable, "-c", MAPPED + WAITING, file]
    with subprocess.Popen(other_code, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        _measured(MAPPED + COPIED, file)
        other.communicate(b"\n")
