"""A command in a child of a Python process: how it ends with its caller, and what it leaves behind."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from common.api import command
from common.api.copying import copy_model
from common.api.scratch import Scratch
from common.errors import UsageError
from common.memory.process import child
from tests.machine import patience, wait_until

TRAIN = """
import pandas as pd
from apps.recsys import Recommender
frame = pd.DataFrame({"user": [n % 50 for n in range(2000)], "item": [n * n % 70 for n in range(2000)]})
try:
    Recommender.fit(frame, memory="300MiB", model="ials", epochs=10_000_000)
except KeyboardInterrupt:
    print("interrupted")
"""
THREAD = """
import threading
import pandas as pd
from apps.recsys import Recommender
frame = pd.DataFrame({"user": [n % 50 for n in range(2000)], "item": [n * n % 70 for n in range(2000)]})
thread = threading.Thread(target=lambda: print(Recommender.fit(frame, memory="300MiB", model="popularity")))
thread.start()
thread.join()
"""


def started(folder: Path, code: str, cwd: Path) -> "subprocess.Popen[str]":
    """A script in a file of its own, with its scratch in ``folder``."""
    script = folder / "script.py"
    script.write_text(code)
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(scratch)}
    return subprocess.Popen(
        [sys.executable, script],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        # A suite that was started in the background has children that ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def commands(folder: Path) -> list[int]:
    """The processes that were started with a path below ``folder``, but for the script."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                words = (place / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            except OSError:
                continue
            if any(word.startswith(str(folder)) and not word.endswith("script.py") for word in words):
                found.append(int(place.name))
    return found


def trains(folder: Path) -> bool:
    """True if the command has read its input and is working."""
    return any((folder / "scratch").glob("peakline-*/model/.training/*"))


def test_ctrl_c_in_the_caller_ends_the_command_and_removes_scratch(tmp_path: Path) -> None:
    script = started(tmp_path, TRAIN, tmp_path)
    wait_until(lambda: trains(tmp_path), alive=script)
    script.send_signal(signal.SIGINT)
    assert script.communicate(timeout=patience(60))[0] == "interrupted\n"
    assert not commands(tmp_path) and not list((tmp_path / "scratch").iterdir())


def test_a_killed_caller_takes_the_command_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = started(tmp_path, TRAIN, tmp_path)
    wait_until(lambda: trains(tmp_path), alive=script)
    script.kill()
    script.communicate()
    wait_until(lambda: not commands(tmp_path))
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with Scratch() as mine:
        assert list((tmp_path / "scratch").iterdir()) == [mine]


def test_it_works_in_a_thread_without_stdin_beside_modules_of_the_same_names(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    for name in ("common", "apps"):
        (trap / name).mkdir(parents=True)
        (trap / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    for name in ("numpy", "pandas", "pyarrow", "json"):
        (trap / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    script = started(tmp_path, THREAD, trap)
    assert script.communicate(timeout=patience(60))[0] == "<Recommender popularity: 50 users, 24 items>\n"
    assert not list((tmp_path / "scratch").iterdir())


def test_a_second_ctrl_c_kills_what_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = ["sh", "-c", "trap '' INT; echo ready >&2; sleep 1000 & wait; wait"]
    monkeypatch.setattr(child, "python_command", lambda module, arguments: stubborn)
    ready = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 1)
        raise KeyboardInterrupt

    def on_line(line: str) -> None:
        ready.set()
        os.kill(os.getpid(), signal.SIGALRM)

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            child.run_command("apps.recsys", [], on_line=on_line)
        assert ready.is_set() and 1 <= time.monotonic() - began < patience(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_other_endings_name_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = b"data: 3 rows\nrecsys train: ValueError: odd (traceback in /cache/error.log)\n"

    def ended(*arguments: object, **options: object) -> child.Finished:
        return child.Finished(child.ChildExit(1), b"", line)

    monkeypatch.setattr(child, "run_command", ended)
    with pytest.raises(RuntimeError, match=r"^ValueError: odd \(traceback in /cache/error.log\)$"):
        command.run("apps.recsys", [], memory=1, name="recsys train", shown={})


def test_a_crash_without_a_word_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "run_command", lambda *a, **o: child.Finished(child.ChildExit(-11), b"", b""))
    with pytest.raises(RuntimeError, match="recsys train ended by SIGSEGV"):
        command.run("apps.recsys", [], memory=1, name="recsys train", shown={})


def test_a_copy_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for folder, text in ((source, "new"), (target, "old")):
        folder.mkdir()
        (folder / "model.json").write_text('{"application": "recsys"}')
        (folder / "content").write_text(text)
    renamed = Path.rename

    def fail(self: Path, to: Path) -> Path:
        if self.name.endswith(".part"):
            raise OSError(28, "No space left on device")
        return renamed(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(UsageError, match="No space left"):
            copy_model(source, target, application="recsys")
    assert (target / "content").read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    copy_model(source, target, application="recsys")
    assert (target / "content").read_text() == "new" and len(list(tmp_path.iterdir())) == 2


def test_a_fork_that_ends_does_not_remove_its_parents_scratch() -> None:
    scratch = Scratch()
    pid = os.fork()
    if pid == 0:
        scratch.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert scratch.path.is_dir()
    scratch.close()
    assert not scratch.path.exists()
