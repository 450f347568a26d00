"""Child processes: their start, their imports, and the reading of their ends."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.bench.forced.endings import end
from common.errors import BadInput
from common.memory.process import child, fork, guard
from common.memory.process.budget import GIB, MIB
from tests.conftest import ROOT
from tests.machine import patience
from tests.schemas import read_record

ENDINGS = "common.bench.forced.endings"
BIN = Path(sys.executable).parent


def without_kills(monkeypatch: pytest.MonkeyPatch, *counts: int | None) -> None:
    """Have the kernel's count of killed processes go through ``counts`` from one reading to the next."""
    readings = iter(counts)
    monkeypatch.setattr(child, "oom_kills", lambda: next(readings))


@pytest.mark.parametrize(
    ("way", "status", "memory", "words"),
    [
        ("answer", 0, False, "ended with exit code 0"),
        ("fail", 1, False, "ended with exit code 1"),
        ("leave", 7, False, "ended with exit code 7"),
        ("allocate", 3, True, "ran out of memory"),
        ("abort", -signal.SIGABRT, True, "ran out of memory"),
        ("abort-by-assertion", -signal.SIGABRT, False, "ended by SIGABRT"),
        ("no-thread", 1, True, "ran out of memory"),
        ("segfault", -signal.SIGSEGV, False, "ended by SIGSEGV"),
        ("terminate", -signal.SIGTERM, False, "ended by SIGTERM"),
    ],
)
def test_an_end_is_read_as_what_it_is(way: str, status: int, memory: bool, words: str) -> None:
    done = child.run_module(ENDINGS, [way])
    assert (done.exit.status, done.exit.out_of_memory, str(done.exit)) == (status, memory, words)
    assert done.last_line == ("ValueError: a wrong value" if way == "fail" else done.last_line)


@pytest.mark.parametrize(
    ("before", "after", "memory"),
    [(4, 4, False), (4, 5, True), (None, None, True)],
    ids=["by-hand", "kernel", "unknown"],
)
def test_a_kill_is_memory_only_if_the_kernel_counts_it(
    monkeypatch: pytest.MonkeyPatch, before: int | None, after: int | None, memory: bool
) -> None:
    without_kills(monkeypatch, before, *([after] if before is not None else []))
    ended = child.run_module(ENDINGS, ["kill"]).exit
    assert ended.status == -signal.SIGKILL and ended.out_of_memory is memory
    assert str(ended) == ("ran out of memory" if memory else "ended by SIGKILL")


def test_the_soft_wall_of_a_child_raises_in_it() -> None:
    assert child.run_module(ENDINGS, ["fill"], ceiling=256 * MIB).exit.status == 3
    assert child.run_module(ENDINGS, ["answer"], ceiling=256 * MIB).exit.status == 0


def test_a_kill_in_the_cgroup_of_a_child_is_memory() -> None:
    place = guard.hard_wall(GIB)
    if place is None:
        pytest.skip("no memory cgroup can be written here")
    place.rmdir()
    code = "import sys; from common.memory.process import child, guard; from common.bench.forced.endings import end\n"
    code += "walls = child.Walls.of_this_process(); guard.limit(walls.cgroup, 64 << 20); guard.enter(walls.cgroup)\n"
    code += "end('fill')\n"
    command = [sys.executable, "-P", "-c", code]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "python_command", lambda module, arguments: command)
        ended = child.run_module("", ceiling=GIB, cgroup=True).exit
    assert ended.status == -signal.SIGKILL and ended.out_of_memory
    assert not place.exists()


def test_a_late_child_is_killed_and_is_no_matter_of_memory() -> None:
    command = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "python_command", lambda module, arguments: command)
        done = child.run_module("", timeout=patience(1))
    assert done.exit.timed_out and not done.exit.out_of_memory and str(done.exit) == "took too long"
    assert done.stdout == b"begun\n"


@pytest.mark.parametrize(
    ("way", "error", "words"),
    [
        ("segfault", child.ChildFailed, "SIGSEGV"),
        ("terminate", child.ChildFailed, "SIGTERM"),
        ("leave", child.ChildFailed, "exit code 7"),
        ("fail", child.ChildFailed, "ValueError: a wrong value"),
        ("allocate", MemoryError, "MemoryError"),
    ],
)
def test_a_fork_reads_the_same_ends(way: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        fork.run(lambda: end(way))
    assert guard.is_out_of_memory(caught.value) is (error is MemoryError)


@pytest.mark.parametrize(("after", "error"), [(4, child.ChildFailed), (5, MemoryError)])
def test_a_killed_fork_is_memory_only_if_the_kernel_counts_it(
    monkeypatch: pytest.MonkeyPatch, after: int, error: type[Exception]
) -> None:
    without_kills(monkeypatch, 4, after)
    with pytest.raises(error):
        fork.run(lambda: end("kill"))


def test_a_fork_answers_and_passes_bad_input_on() -> None:
    def refuse() -> dict[str, Any]:
        raise BadInput("the user's own path", public="a file")

    assert fork.run(lambda: end("answer")) == {"bytes": 1}
    with pytest.raises(BadInput, match="own path") as caught:
        fork.run(refuse)
    assert caught.value.public == "a file"


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (errno.ENOMEM, MemoryError, "Cannot allocate memory"),
        (errno.ENOSPC, OSError, "/a/file"),
        (errno.EACCES, child.ChildFailed, "PermissionError"),
    ],
)
def test_a_fork_tells_memory_from_room_from_the_rest(number: int, error: type[Exception], words: str) -> None:
    def fail() -> dict[str, Any]:
        raise OSError(number, os.strerror(number), "/a/file")

    with pytest.raises(error, match=words):
        fork.run(fail)


# ---------------------------------------------------------------- the working directory

SHADOWS = ("common", "apps", "numpy", "nibabel", "torch", "json", "pyarrow", "openvino", "scipy", "safetensors")


@pytest.fixture
def shadowed(tmp_path: Path) -> Path:
    """A folder in which modules lie that have the names of the suite's own and of its libraries, and must not run."""
    for name in SHADOWS:
        (tmp_path / name).mkdir()
        text = f"open({str(tmp_path / 'HAS_RUN')!r}, 'a').write({name!r})\nraise SystemExit('{name} of the folder')\n"
        (tmp_path / name / "__init__.py").write_text(text)
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@contextmanager
def started_in(folder: Path) -> Iterator[None]:
    old = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(old)


GRANDCHILD = """
import json, subprocess, sys
from common.memory.process import child
import numpy, torch
names = ["numpy", "common.errors", "torch", "nibabel"]
code = "import importlib, json, sys; print(json.dumps([importlib.import_module(n).__file__ for n in sys.argv[1:]]))"
plain = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
print(plain.stdout)
sys.exit(plain.returncode)
"""


def test_neither_a_child_nor_its_own_children_import_from_the_working_directory(shadowed: Path) -> None:
    with started_in(shadowed):
        done = subprocess.run(
            [sys.executable, "-P", "-c", GRANDCHILD], env=child.python_environment(), capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert not any(file.startswith(str(shadowed)) for file in json.loads(done.stdout))
    assert not (shadowed / "HAS_RUN").exists()


def test_a_child_is_started_with_a_safe_path(shadowed: Path) -> None:
    assert child.python_command("common.x", ["a"])[1:] == ["-P", "-m", "common.x", "a"]
    assert child.python_environment()["PYTHONSAFEPATH"] == "1"
    with started_in(shadowed):
        assert child.run_module(ENDINGS, ["answer"]).exit.status == 0
    assert not (shadowed / "HAS_RUN").exists()


def test_a_child_of_a_checkout_that_is_not_installed_finds_the_suite() -> None:
    code = f"from common.memory.process import child; print(child.run_module({ENDINGS!r}, ['leave']).exit)"
    command = [sys.executable, "-S", "-c", code]  # no site-packages, so nothing but the directory has the suite
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": os.environ["PATH"], "PYTHONNOUSERSITE": "1"}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "ended with exit code 7", done.stderr


@pytest.mark.parametrize("command", ["recsys", "imaging"])
def test_a_console_script_runs_among_files_that_shadow_its_libraries(
    command: str, shadowed: Path, work: Callable[[str], list[object]]
) -> None:
    script = BIN / command
    if not script.is_file():
        pytest.skip(f"{command} is not installed next to this interpreter")
    out = shadowed.parent / "out"
    done = subprocess.run([script, *map(str, work(command)), "-o", out], cwd=shadowed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (shadowed / "HAS_RUN").exists()
    assert read_record(out / "run.json")["exit_code"] == 0


@pytest.fixture
def work(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[object]]:
    """A small piece of work of each application that loads its libraries and starts its children."""
    folder = tmp_path_factory.mktemp("work")

    def of(command: str) -> list[object]:
        if command == "recsys":
            rows = folder / "rows.csv"
            pairs = ((user, (user * 7 + item * 3) % 40) for user in range(60) for item in range(6))
            rows.write_text("user,item\n" + "".join(f"{user},{item}\n" for user, item in pairs))
            return ["train", rows, "--memory", "500MiB", "--model", "ials", "--factors", "8", "--epochs", "1"]
        import nibabel
        import numpy as np

        volume = folder / "volume.nii.gz"
        values = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), volume)  # type: ignore[no-untyped-call]
        return ["infer", volume, "-m", ROOT / "data" / "models" / "hippocampus", "--memory", "500MiB"]

    return of


def test_the_supervisor_names_the_end_of_its_child(tmp_path: Path) -> None:
    for way, code, words in (("segfault", 1, "SIGSEGV"), ("leave", 1, "exit code 7"), ("answer", 0, "")):
        start = "import sys; from pathlib import Path; from common.memory.process import child; child.supervise("
        start += f"child.python_command({ENDINGS!r}, [{way!r}]), name='a command', ceiling={GIB}, variables={{}},"
        start += f"json=True, record=Path({str(tmp_path / 'run.json')!r}))"
        done = subprocess.run([sys.executable, "-c", start], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert words in done.stderr and ("does not fit" not in done.stderr)
        if code:
            record = json.loads(done.stdout)
            assert record["exit_code"] == 1 and words in record["error"]["message"]
            assert read_record(tmp_path / "run.json") == record
