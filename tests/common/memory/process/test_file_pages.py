import json
import subprocess
import sys
from pathlib import Path

from common.memory.process.budget import MIB

# NumPy's code is used before and after, and a page of a file that was changed in memory is not lost.
RELEASE = """
import json, mmap, sys
import numpy as np
from common.memory.process import file_pages, meter
path = sys.argv[1]
with open(path, "r+b") as stream:
    changed = mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
changed[0] = 7
before, total = meter.resident(), float(np.linalg.inv(np.eye(8)).sum())
released = file_pages.release()
after = meter.resident()
assert changed[0] == 7 and float(np.linalg.inv(np.eye(8)).sum()) == total == 8
print(json.dumps([before, released, after]))
"""


def test_pages_of_libraries_leave_memory_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    done = subprocess.run([sys.executable, "-c", RELEASE, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, released, after = json.loads(done.stdout)
    assert released >= 3 * MIB
    assert after <= before - released // 2
