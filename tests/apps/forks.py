"""Commands in copies of a process that has imported their libraries: what they say, write and end with.

A command that a user starts takes up to 5 processor seconds to import and warm up its libraries. A copy of a process
that has imported them runs the same ``main``, from the command line to the exit code: its plan, record, messages and
files are those of a user's command. Its memory is not, since it holds what every command of the application imports;
nor has it a warm-up, a supervisor, a cgroup or a check of late libraries. Tests that ask what those do start commands
as a user does (the fixture ``run``).
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

from common.cli import main
from common.memory.process import child, glibc, guard, libraries, no_compiler, supervisor

ROOT = Path(__file__).resolve().parents[2]
IMPORTS: Mapping[str, Sequence[str]] = {
    "apps.imaging": (
        "numpy",
        "nibabel",
        "torch",
        "torch.onnx.ops",
        "pydicom",
        "apps.imaging.cli",
        "apps.imaging.planning.train",
        "apps.imaging.planning.infer",
    ),
    "apps.recsys": ("numpy.random", "pyarrow.compute", "scipy.sparse", "implicit.cpu.als", "apps.recsys.cli"),
}
"""What is imported before commands of an application are copied: not OpenVINO, whose thread a copy would not have."""
RESTARTED = {"jemalloc_bg_thd"}
"""Threads that start again in a copy."""
MESSAGE_BYTES = 128 << 10


class Server:
    """A process that has imported an application's libraries and copies itself for each command."""

    def __init__(self, application: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.apps.forks", application, str(theirs.fileno())],
                cwd=ROOT,
                env=os.environ | glibc.environment(len(os.sched_getaffinity(0))) | {"OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        timeout: float,
        on_line: Callable[[str], object] = lambda line: None,
    ) -> child.Finished:
        """Run a command of the application to its end; as ``child.run_command``.

        Raises
        ------
        subprocess.TimeoutExpired
            After ``timeout`` seconds; it is killed.
        """
        request = json.dumps([module, list(arguments), dict(os.environ)]).encode()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            socket.send_fds(self._socket, [request], [out.fileno(), err.fileno()])
            self._socket.settimeout(timeout)
            pid = int(self._socket.recv(MESSAGE_BYTES))
            try:
                status = self._socket.recv(MESSAGE_BYTES)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self._socket.recv(MESSAGE_BYTES)
                raise subprocess.TimeoutExpired(list(arguments), timeout) from None
            return _finished(int(status), out, err, on_line)

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.wait(60)


def application_of(module: str) -> str:
    """``"apps.recsys"`` of any of its modules."""
    return ".".join(module.split(".")[:2])


def _serve(application: str, commands: socket.socket) -> None:
    no_compiler.leave_out()
    for name in IMPORTS[application]:
        import_module(name)
    if application == "apps.imaging":
        import_module("apps.imaging.models.networks.monai").import_monai()
    others = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    threads = {(task / "comm").read_text().strip() for task in others}
    assert threads <= RESTARTED, f"a library has started threads: {threads}"
    # A plan is of the command alone: this process maps more, which is not to be written to the costs.
    instead: Mapping[str, Callable[..., Any]] = {
        "amended": lambda plan, *_: plan,
        "resolve": lambda warm_up: lambda: None,
    }
    for name, function in instead.items():
        assert hasattr(main, name)
        setattr(main, name, function)
    child.run_command = partial(_copied, application, child.run_command)
    for number in (supervisor.PLANNED, supervisor.UNWALLED):
        signal.signal(number, lambda *_: None)  # a command tells its parent
    gc.collect()
    gc.freeze()
    while True:
        request, files, *_ = socket.recv_fds(commands, MESSAGE_BYTES, 2)
        if not request:
            return
        pid = os.fork()
        if pid == 0:
            commands.close()
            _become(*json.loads(request), files)
        for file in files:
            os.close(file)
        commands.send(str(pid).encode())
        commands.send(str(os.waitpid(pid, 0)[1]).encode())


def _copied(
    own: str,
    fresh: Callable[..., child.Finished],
    module: str,
    arguments: Sequence[str],
    *,
    on_line: Callable[[str], object] = lambda line: None,
) -> child.Finished:
    """``child.run_command`` of a command in a copy: those that it starts are copies too."""
    if application_of(module) != own:
        return fresh(module, arguments, on_line=on_line)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if (pid := os.fork()) == 0:
            _become(module, arguments, dict(os.environ), [out.fileno(), err.fileno()])
        return _finished(os.waitpid(pid, 0)[1], out, err, on_line)


def _finished(status: int, out: IO[bytes], err: IO[bytes], on_line: Callable[[str], object]) -> child.Finished:
    out.seek(0)
    err.seek(0)
    done = child.Finished(child.read_exit(os.waitstatus_to_exitcode(status), kills_before=None), out.read(), err.read())
    for line in done.stderr.decode("utf-8", "replace").splitlines():
        on_line(line)
    return done


def _become(module: str, arguments: Sequence[str], environment: Mapping[str, str], files: Sequence[int]) -> NoReturn:
    """Run the command as the child of a supervisor does."""
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.environ.pop(libraries.CHECK, None)
    os.environ.update({child.SUPERVISED: str(os.getppid()), guard.WALL: ""})
    sys.argv = [module, *arguments]
    code: Any = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[2])) as commands:
        _serve(sys.argv[1], commands)
