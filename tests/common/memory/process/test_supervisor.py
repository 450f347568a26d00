"""The supervisor as a wall: where no cgroup can be written it watches the tree, and where one can, for thrashing."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.memory.process import child, guard, meter, supervisor
from common.memory.process.budget import GIB, MIB
from tests.conftest import ROOT
from tests.machine import patience, wait_until
from tests.messages import missing, says
from tests.schemas import checked_record, read_record

START = f"""
import os, signal, subprocess, sys
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
code, ceiling, record = sys.argv[1:]
free = lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1, signal.SIGUSR2))
child = subprocess.Popen([sys.executable, "-c", code], preexec_fn=free)
command = [sys.executable, "-I", "-S", {supervisor.__file__!r}]
os.execv(sys.executable, [*command, str(child.pid), "", "bench fill", ceiling, "json", record])
"""
"""Starts a child and becomes its supervisor, as ``child.supervise`` does where there is no cgroup."""
FILL = """
import os, signal, subprocess, sys, time
def fill(size):
    block = bytearray(size << 20)
    block[::4096] = b"x" * len(block[::4096])
    return block
def planned():
    os.kill(os.getppid(), signal.SIGUSR1)
"""


def watched(code: str, ceiling: int, record: Path | str = "") -> subprocess.CompletedProcess[str]:
    """Run ``code`` under a ceiling that only its supervisor keeps."""
    command = [sys.executable, "-c", START, FILL + code, str(ceiling), str(record)]
    return subprocess.run(command, capture_output=True, text=True, timeout=patience(60))


@pytest.mark.parametrize("size", [160, 600])
def test_above_the_ceiling_it_is_killed_and_the_overshoot_is_said(tmp_path: Path, size: int) -> None:
    done = watched(f"planned(); fill(100); fill({size}); time.sleep(60)", 140 * MIB, tmp_path / "run.json")
    assert done.returncode == 1
    record = checked_record(json.loads(done.stdout))
    assert record == read_record(tmp_path / "run.json")
    assert record["error"]["kind"] == "above the ceiling"
    says(done.stderr, "140.0 MiB", "above its ceiling", "kept")
    overshoot = float(done.stderr.partition("MiB, ")[2].split()[0])
    assert 0 < overshoot < size  # 3 to 30 MiB; a busy machine may look late


def test_below_the_ceiling_it_ends_by_itself() -> None:
    done = watched("planned(); fill(100); sys.exit(4)", 140 * MIB)
    assert (done.returncode, done.stderr) == (4, "")


def test_what_processes_share_counts_once() -> None:
    code = "planned(); block = fill(100)\nfor _ in range(4):\n    if not os.fork(): time.sleep(0.5); os._exit(0)\n"
    done = watched(code + "for _ in range(4): os.wait()", 150 * MIB)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_copy_writes_counts_and_it_is_killed_too(tmp_path: Path) -> None:
    code = f"""
planned(); block = fill(100)
if not os.fork():
    open({str(tmp_path / "copy")!r}, "w").write(str(os.getpid()))
    time.sleep(0.2)
    block[::4096] = b"y" * len(block[::4096])
time.sleep(60)
"""
    done = watched(code, 150 * MIB)
    assert done.returncode == 1
    says(done.stderr, "above its ceiling")
    copy = Path("/proc", (tmp_path / "copy").read_text())

    def gone() -> bool:
        try:
            return ") Z " in (copy / "stat").read_text()
        except OSError:
            return True

    wait_until(gone, seconds=10)  # what is killed ends a moment later


def test_a_child_before_exec_is_not_its_parent_again() -> None:
    code = "planned(); block = fill(100)\nfor _ in range(60): subprocess.run(['true'])"  # by ``vfork``
    done = watched(code, 150 * MIB)
    assert (done.returncode, done.stderr) == (0, "")


def test_before_there_is_a_plan_a_small_ceiling_does_not_count_yet() -> None:
    assert watched("fill(60); time.sleep(0.3)", 40 * MIB).returncode == 0
    assert watched("block = fill(60); time.sleep(0.3); planned(); time.sleep(60)", 40 * MIB).returncode == 1
    assert watched("fill(200); time.sleep(60)", 40 * MIB).returncode == 1
    unwalled = "os.kill(os.getppid(), signal.SIGUSR2); time.sleep(0.3); block = fill(200); time.sleep(0.3); sys.exit(3)"
    assert watched(unwalled, 40 * MIB).returncode == 3


def test_a_killed_child_is_no_excess() -> None:
    done = watched("planned(); os.kill(os.getpid(), signal.SIGKILL)", 140 * MIB)
    assert done.returncode == 1 and json.loads(done.stdout)["error"]["kind"] == "killed"
    assert missing(done.stderr, "above its ceiling")


DEMO = """
import sys
from common.bench import demo_allocation
from common.cli import main
from common.memory.process import guard
guard.memory_cgroups = lambda: iter(())
sys.exit(main.main(demo_allocation.parser(), "common.bench.demo_allocation"))
"""


def demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the smallest command where no cgroup can be written."""
    command = [sys.executable, "-c", DEMO, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience(120))


def test_a_command_without_a_cgroup_is_kept_below_its_ceiling(tmp_path: Path) -> None:
    output = tmp_path / "run.json"
    done = demo("--bytes", "60MiB", "--memory", "110MiB", "--output", output)
    assert done.returncode == 0, done.stderr
    assert read_record(output)["missing_walls"] == [guard.NO_HARD_WALL]
    done = demo("--bytes", "60MiB", "--memory", "110MiB", "--hostile", "1.8", "--json")
    assert done.returncode == 1
    assert checked_record(json.loads(done.stdout))["error"]["kind"] == "above the ceiling"
    says(done.stderr, "110.0 MiB", "above its ceiling")
    refused = demo("--bytes", "60MiB", "--memory", "12MiB", "--json")
    assert refused.returncode == 3 and json.loads(refused.stdout)["smallest_feasible_bytes"] > 40 * MIB


@pytest.fixture
def cgroup(tmp_path: Path) -> Callable[..., supervisor.Cgroup]:
    """The files of a cgroup with a limit of 100 MiB, and its watch; ``change(private=..., faults=...)`` has it look."""
    watch = supervisor.Cgroup(str(tmp_path))
    (tmp_path / "memory.max").write_text(str(100 * MIB))
    fields = {"anon": 0, "file_mapped": 0, "pgmajfault": 0, "workingset_refault_file": 0}

    def change(**values: int) -> str:
        fields.update(values)
        (tmp_path / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in fields.items()))
        return watch.look()

    change.watch = watch  # type: ignore[attr-defined]
    return change


def _look(change: Callable[..., str], seconds: int, faults: int, start: int = 0) -> list[str]:
    return [change(pgmajfault=start + faults * (second + 1)) for second in range(seconds)]


def test_a_tree_that_only_reads_its_libraries_again_is_ended(cgroup: Callable[..., str]) -> None:
    assert not any(_look(cgroup, 20, 1000))  # it loads them
    cgroup.watch.told(signal.SIGUSR1, None)  # type: ignore[attr-defined]
    cgroup(anon=40 * MIB, file_mapped=30 * MIB)
    words = [cgroup(anon=95 * MIB, file_mapped=4 * MIB, pgmajfault=20_000 + 90 * n) for n in range(1, 11)]
    assert not any(words[:-1])
    says(words[-1], "25.0 MiB", "10 s")


def test_pages_that_are_read_again_count_where_a_fault_reads_many(cgroup: Callable[..., str]) -> None:
    cgroup.watch.told(signal.SIGUSR1, None)  # type: ignore[attr-defined]
    cgroup(anon=40 * MIB, file_mapped=30 * MIB)
    words = [cgroup(anon=95 * MIB, pgmajfault=25 * n, workingset_refault_file=160_000 * n) for n in range(1, 11)]
    assert [bool(text) for text in words] == [False] * 9 + [True]


THRASH = """
import mmap
open(place + "/cgroup.procs", "w").write(str(os.getpid()))
with open(file, "wb") as stream:
    stream.write(os.urandom(50 << 20)); stream.flush(); os.fsync(stream.fileno())
program = mmap.mmap(os.open(file, os.O_RDONLY), 0, prot=mmap.PROT_READ)
sum(program[::4096])
planned()
time.sleep(1.5)
block = fill(size)
until = time.monotonic() + 6
while time.monotonic() < until:
    sum(program[::4096])
"""


@pytest.mark.parametrize(("size", "code"), [(20, 0), (60, 1)], ids=["room", "none"])
def test_a_tree_that_thrashes_in_a_real_cgroup_is_ended(tmp_path: Path, size: int, code: int) -> None:
    place = guard.hard_wall(100 * MIB)
    if place is None:
        pytest.skip("no memory cgroup can be written here")
    impatient = tmp_path / "supervisor.py"
    source = Path(supervisor.__file__).read_text()
    impatient.write_text(source.replace("STUCK_SECONDS = 10", "STUCK_SECONDS = 3"))
    start = START.replace(supervisor.__file__, str(impatient)).replace('""', repr(str(place)), 1)
    names = f"place, file, size = {str(place)!r}, {str(tmp_path / 'program')!r}, {size}\n"
    command = [sys.executable, "-c", start, FILL + names + THRASH, str(100 * MIB), ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(60))
    assert done.returncode == code, done.stderr
    assert not place.exists()
    if code:
        says(done.stderr, "libraries again")


@pytest.mark.parametrize(
    ("private", "faults"), [(69 * MIB, 1000), (95 * MIB, 5)], ids=["data that is mapped", "hardly a fault"]
)
def test_a_tree_with_room_or_progress_is_not_ended(cgroup: Callable[..., str], private: int, faults: int) -> None:
    cgroup.watch.told(signal.SIGUSR1, None)  # type: ignore[attr-defined]
    cgroup(anon=40 * MIB, file_mapped=30 * MIB)
    cgroup(anon=private)
    assert not any(_look(cgroup, 30, faults))


def test_a_pause_in_the_faults_starts_the_count_again(cgroup: Callable[..., str]) -> None:
    cgroup.watch.told(signal.SIGUSR1, None)  # type: ignore[attr-defined]
    cgroup(anon=40 * MIB, file_mapped=30 * MIB)
    cgroup(anon=95 * MIB)
    assert not any(_look(cgroup, 9, 100)) and not cgroup()
    assert not any(_look(cgroup, 9, 100, start=900))


def test_it_is_as_small_as_the_plan_has_it() -> None:
    file = child.supervisor_file()
    start = "import os, signal, sys; pid = os.fork()\nif not pid: signal.pause()\n"
    start += f"arguments = [{file!r}, str(pid), '', 'bench', '{GIB}', '', '']\n"
    start += "os.execv(sys.executable, [sys.executable, '-I', '-S', *arguments])"
    with subprocess.Popen([sys.executable, "-c", start], pass_fds=[int(Path(file).name)]) as parent:
        wait_until(lambda: b"-I" in Path(f"/proc/{parent.pid}/cmdline").read_bytes(), alive=parent)
        time.sleep(1)
        size = meter.pages(parent.pid).private
        parent.terminate()
    assert parent.returncode == 130
    assert 2 * MIB < size <= guard.SUPERVISOR_BYTES


def test_a_rank_that_is_stopped_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for it. Time in which nobody looked does not count, as all were stopped then."""
    monkeypatch.setattr(supervisor, "STOPPED_SECONDS", 1)
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        rank = supervisor.Rank(sleeper.pid)
        assert rank.look() == ""
        sleeper.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        assert rank.look() == "" and rank.seconds == 1
        wait_until(lambda: rank.look() == supervisor.STOPPED)
        sleeper.send_signal(signal.SIGCONT)
        wait_until(lambda: rank.look() == "" and rank.seconds == 0)
    finally:
        sleeper.kill()
        sleeper.wait()
