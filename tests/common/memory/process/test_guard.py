import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.memory.process import guard
from common.memory.process.budget import MIB

WALLED = """
import sys
import numpy as np
from common.memory.process import glibc, guard, meter
MIB = 1 << 20
glibc.pin_thresholds()
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


def test_addresses_without_pages_do_not_count_once_memory_was_released() -> None:
    code = """
import numpy as np
from common.memory.process import guard, meter
MIB = 1 << 20
assert guard.soft_wall(meter.resident() + 64 * MIB, threads=0, slack=0)
hole = np.empty(48 * MIB, np.uint8)  # never touched
try:
    np.ones(40 * MIB, np.uint8)
except MemoryError:
    guard.release()
else:
    raise SystemExit("the wall did not hold")
np.ones(40 * MIB, np.uint8)
try:
    np.ones(80 * MIB, np.uint8)
except MemoryError:
    raise SystemExit(0)
raise SystemExit("the wall fell")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_soft_wall_makes_torch_raise_what_we_recognise() -> None:
    code = """
import sys, torch
from common.memory.process import glibc, guard, meter
glibc.pin_thresholds()
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


def test_a_watchdog_ends_a_process_that_reserved_little_and_touched_too_much() -> None:
    code = """
import sys, numpy as np
from common.memory.process import guard, meter
MIB = 1 << 20
guard.rss_watchdog(meter.resident() + 64 * MIB)
room = np.empty(400 * MIB, np.uint8)  # reserved only
room[: 40 * MIB] = 1
print("within", flush=True)
for start in range(0, 400, 4):
    room[start * MIB : (start + 4) * MIB] = 1
    print(start, flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 3  # does not fit
    assert ended.stdout.startswith("within") and "396" not in ended.stdout
    assert re.search(r"\d+(\.\d+)? MiB", ended.stderr) and ended.stderr.count("\n") == 2


def onnxruntime_error(message: str) -> Exception:
    """An exception as ONNX Runtime raises it, which is no ``RuntimeError``."""
    kind = type("RuntimeException", (Exception,), {"__module__": "onnxruntime.capi.onnxruntime_pybind11_state"})
    error: Exception = kind(message)
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("std::bad_alloc"), True),
        (np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("u1")), True),  # type: ignore[attr-defined]
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
        (ImportError("libopenblas.so: failed to map segment from shared object"), True),
        (ImportError("No module named 'numpy'"), False),
        (onnxruntime_error("Failed to allocate memory for requested buffer of size 9"), True),
        (onnxruntime_error("Invalid rank for input"), False),
        (OSError(12, "Cannot allocate memory"), True),
    ],
)
def test_recognises_allocation_failures(error: BaseException, expected: bool) -> None:
    assert guard.is_out_of_memory(error) is expected


OPENVINO = """
import numpy as np
from common.memory.process import glibc, guard, meter
glibc.pin_thresholds()
from common.engines.openvino import import_openvino
ov = import_openvino()
from openvino import opset13 as ops

def model(side):
    image = ops.parameter([1, 8, side, side, side], np.float32)
    kernels = [ops.constant(np.ones((32, channels, 3, 3, 3), np.float32)) for channels in (8, 32)]
    inner = ops.convolution(image, kernels[0], [1] * 3, [1] * 3, [1] * 3, [1] * 3)
    return ov.Model([ops.convolution(inner, kernels[1], [1] * 3, [1] * 3, [1] * 3, [1] * 3)], [image])

core, options = ov.Core(), {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
core.compile_model(model(8), "CPU", options)(np.ones((1, 8, 8, 8, 8), np.float32))
for room in (8, 64):  # the weights' copies fail, then the activations
    guard.soft_wall(meter.resident() + (room << 20), threads=0, slack=0)
    try:
        core.compile_model(model(96), "CPU", options)(np.ones((1, 8, 96, 96, 96), np.float32))
    except (RuntimeError, MemoryError) as error:
        assert guard.is_out_of_memory(error), error
    else:
        raise SystemExit("the wall did not hold")
    guard.lift_soft_wall()
"""


def test_soft_wall_makes_openvino_raise_what_we_recognise() -> None:
    done = subprocess.run([sys.executable, "-c", OPENVINO], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
        assert guard.kernel_kills(place) == 0
        assert subprocess.run([sys.executable, "-c", code]).returncode == -9
        assert guard.kernel_kills(place) == 1
    finally:
        os.rmdir(place)


LOWERED = """
import os, sys
from pathlib import Path
from common.memory.process import budget, guard, meter
MIB = 1 << 20
place = Path(os.environ[guard.WALL])
guard.enter(place)
assert guard.standing() == place
block = bytearray(b"x") * (60 * MIB)
gauge = meter.PeakMeter()
held, charged = gauge.tree_bytes(), guard._charged(place)
assert 60 * MIB < charged < held, (charged, held)  # others read the interpreter first
limit = lambda: budget._cgroup_limit(place)
before = limit()
assert not guard.lower_hard_wall(held - MIB, held)
assert not guard.lower_hard_wall(40 * MIB, 40 * MIB)  # more is charged: it would have to kill
assert limit() == before == 256 * MIB
assert guard.lower_hard_wall(held + 40 * MIB, held)
assert abs(limit() - (charged + 40 * MIB)) < 2 * MIB, (limit(), charged)
more = bytearray(b"x") * (30 * MIB)
print("within", flush=True)
more += bytearray(b"x") * (30 * MIB)
"""


def test_the_hard_wall_is_lowered_to_what_the_tree_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    place = _place(256 * MIB)
    monkeypatch.setenv(guard.WALL, str(place))
    assert guard.standing() is None and guard.lower_hard_wall(2, 1)  # this process is not in it
    try:
        done = subprocess.run([sys.executable, "-c", LOWERED], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (-9, "within\n"), done.stderr
        assert guard.kernel_kills(place) == 1
    finally:
        os.rmdir(place)


LIFTED = """
import os
from pathlib import Path
from common.memory.process import budget, guard
place = Path(os.environ[guard.WALL])
guard.enter(place)
guard.lift_hard_wall()
assert budget._cgroup_limit(place) > 256 << 20, budget._cgroup_limit(place)
block = bytearray(b"x") * (200 << 20)
"""


def test_a_hard_wall_is_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """From inside, where it is the machine's memory as far as a process sees, and above its limit with swap."""
    place = _place(64 * MIB)
    monkeypatch.setenv(guard.WALL, str(place))
    try:
        done = subprocess.run([sys.executable, "-c", LIFTED], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    finally:
        os.rmdir(place)


def test_a_cgroup_of_version_2_is_not_limited_below_what_it_cannot_give_back(tmp_path: Path) -> None:
    for name, text in {"memory.max": "max", "memory.high": "max", "memory.current": str(80 * MIB)}.items():
        (tmp_path / name).write_text(text)
    assert not guard.limit(tmp_path, 64 * MIB)
    assert [(tmp_path / f"memory.{name}").read_text() for name in ("max", "high")] == ["max", "max"]
    assert guard.limit(tmp_path, 96 * MIB)
    assert (tmp_path / "memory.max").read_text() == str(96 * MIB)
    (tmp_path / "memory.stat").write_text(f"anon {30 * MIB}\nfile {40 * MIB}\nfile_mapped {5 * MIB}\n")
    assert guard._charged(tmp_path) == 35 * MIB


def _place(size: int = 64 * MIB) -> Path:
    place = guard.hard_wall(size)
    if place is None:
        pytest.skip("no memory cgroup can be written here")
    return place


def test_a_cgroup_left_by_a_killed_supervisor_is_removed() -> None:
    place = _place()
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    stale = place.with_name(f"peakline-{gone.pid}")
    foreign = place.with_name("peakline-not-a-pid")
    for folder in (stale, foreign):
        folder.mkdir()
    try:
        assert guard.hard_wall(64 * MIB) == place  # ours is alive, and stays
        assert not stale.exists() and foreign.exists()
    finally:
        foreign.rmdir()
        place.rmdir()


def test_no_hard_wall_where_the_cgroup_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "memory_cgroups", lambda: iter([Path("/proc/self/fdinfo")]))
    assert guard.hard_wall(64 * MIB) is None
    monkeypatch.setenv(guard.WALL, "")
    assert guard.missing_walls(soft=False) == [guard.NO_HARD_WALL, guard.NO_SOFT_WALL]
    monkeypatch.setenv(guard.WALL, "/some/cgroup")  # which this process is not in
    assert guard.missing_walls(soft=True) == [guard.NO_HARD_WALL]
    monkeypatch.setattr(guard, "holds", lambda cgroup, pid: True)
    assert guard.missing_walls(soft=True) == []


def test_a_limit_from_outside_is_kept_and_said() -> None:
    code = """
import resource
from common.memory.process import guard, meter
MIB = 1 << 20
low = meter._status("VmData") + 32 * MIB
resource.setrlimit(resource.RLIMIT_DATA, (low, low))
assert guard.soft_wall(4096 * MIB)
assert resource.getrlimit(resource.RLIMIT_DATA) == (low, low)
assert guard.LOW_SOFT_WALL in guard.missing_walls(soft=True)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_limit_that_cannot_be_set_is_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(guard.resource, "setrlimit", refuse)
    assert guard.soft_wall(1 << 40) is False
    guard.lift_soft_wall()
