"""Start child processes of peakline and read how they ended. Nothing else in peakline does either.

A child runs a module as ``python -P -m module``, with ``PYTHONSAFEPATH=1`` in its environment, which its own children
inherit. So none of them imports from the working directory, where a user's ``numpy.py`` or folder ``common/`` may lie.

``run_module`` waits for a child and returns its output with a ``ChildExit``; ``supervise`` starts the command itself
and becomes its supervisor. ``common.memory.process.fork`` runs a function in a copy of this process instead.
"""

import ctypes
import marshal
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import IO, NoReturn

from common.errors import EXIT_DOES_NOT_FIT, EXIT_OK, EXIT_UNFORESEEN
from common.memory.process import guard, supervisor
from common.memory.process.budget import MIB, total_memory
from common.memory.process.meter import resident

SUPERVISED = "PEAKLINE_SUPERVISOR"
"""Environment variable with the pid of a command's supervisor."""
CALLER = "PEAKLINE_CALLER"
"""Environment variable by which a command knows the pid of the process that ``run_command`` runs in."""
SAFE_PATH = "PYTHONSAFEPATH"
"""Environment variable that keeps the working directory out of ``sys.path``, as ``-P`` does for one process."""
CGROUP_MARGIN = 8 * MIB
"""Memory beyond a child's cgroup limit: page tables and a process that is being killed, and files that its parent
does not map (measured up to 7 MiB together)."""
MESSAGE_BYTES = 2000
"""Length of the end of stderr that is searched for the words with which a C++ library ran out of memory."""

SPELL = 1.0
"""Seconds of waiting at a time. A signal that arrives just before a system call is answered when the call returns: that
could be when the command ends."""

_WALLS = "PEAKLINE_CHILD_WALLS"
"""Environment variable with a child's ceiling in bytes and its cgroup, each of which may be empty."""
_ROOT = Path(__file__).resolve().parents[3]
"""The directory that holds peakline's packages."""
_PR_SET_PDEATHSIG = 1
_PYC_HEADER = 16
"""Bytes before the code in a compiled file: magic number, flags, the source's time and size."""


class ChildFailed(RuntimeError):
    """A child process ended in an unforeseen way; the message says how."""


@dataclass(frozen=True, slots=True)
class ChildExit:
    """The end of a child process."""

    status: int
    """The exit code, or minus the number of the signal that ended it, as ``subprocess`` has it."""
    out_of_memory: bool = False
    """True only if the kernel killed it for its memory, or it says so itself: by exit code 3, or on aborting."""
    timed_out: bool = False
    """True if it was killed because it had taken too long."""

    def __str__(self) -> str:
        if self.timed_out:
            return "took too long"
        if self.out_of_memory:
            return "ran out of memory"
        if self.status >= 0:
            return f"ended with exit code {self.status}"
        try:
            return f"ended by {signal.Signals(-self.status).name}"
        except ValueError:  # a real-time signal
            return f"ended by signal {-self.status}"


@dataclass(frozen=True, slots=True)
class Finished:
    """A child that has ended: how, and what it wrote."""

    exit: ChildExit
    stdout: bytes
    stderr: bytes

    @property
    def last_line(self) -> str:
        """The last line on stderr that is not blank; an uncaught exception's is its type and message."""
        lines = [line.strip() for line in self.stderr.decode("utf-8", "replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")


def python_command(module: str, arguments: Sequence[str] = ()) -> list[str]:
    """The command line that runs ``module`` in a fresh interpreter; start it with ``python_environment``."""
    return [sys.executable, "-P", "-m", module, *arguments]


def python_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a child that finds the same peakline and nothing else of the working directory.

    If this process found peakline in its own working directory (``python -m apps.recsys`` in a checkout), the child
    gets that directory by ``PYTHONPATH``.

    Parameters
    ----------
    variables
        Further variables, which win.
    """
    environment = os.environ | {SAFE_PATH: "1"}
    if not sys.flags.safe_path and sys.path and Path(sys.path[0] or os.curdir).resolve() == _ROOT:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return environment | dict(variables or {})


def run_module(
    module: str,
    arguments: Sequence[str] = (),
    *,
    stdin: bytes = b"",
    ceiling: int | None = None,
    cgroup: bool = False,
    variables: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Finished:
    """Run ``module`` of peakline as a child until it ends, and return what it wrote.

    The child's ``main`` calls ``run_work``. It is killed if this process is interrupted meanwhile, or dies.

    Parameters
    ----------
    ceiling
        Bytes that the child alone may hold, once it calls ``Walls.stand``; ``None``: as many as it takes.
    cgroup
        True for a memory cgroup of its own, if one can be made, in addition to the soft wall.
    variables
        Further environment variables.
    timeout
        Seconds after which it is killed.
    """
    group = guard.hard_wall(total_memory()) if cgroup and ceiling is not None else None
    walls = {_WALLS: f"{'' if ceiling is None else max(0, ceiling)} {group or ''}"}
    environment = python_environment({**(variables or {}), **walls})
    before, kills, timed_out = oom_kills(), 0, False
    try:
        ran = subprocess.run(
            python_command(module, arguments), input=stdin, env=environment, capture_output=True, timeout=timeout
        )
        status, out, err = ran.returncode, ran.stdout, ran.stderr
    except subprocess.TimeoutExpired as late:
        status, out, err, timed_out = -signal.SIGKILL, late.stdout or b"", late.stderr or b"", True
    finally:
        kills = guard.take_down(group)
    ended = read_exit(status, kills_before=before, cgroup_kills=kills, timed_out=timed_out)
    done = Finished(ended, out, err)
    # Libraries that end the process themselves: by an uncaught C++ exception, or libgomp by exit code 1.
    if status == -signal.SIGABRT or done.last_line.startswith("libgomp:"):
        message = err[-MESSAGE_BYTES:].decode("utf-8", "replace")
        done = replace(done, exit=replace(ended, out_of_memory=guard.names_out_of_memory(message)))
    return done


def run_command(
    module: str, arguments: Sequence[str], *, on_line: Callable[[str], object] = lambda line: None
) -> Finished:
    """Run a command line of peakline until it ends, and return what it wrote: the Python API's way.

    The command plans and supervises itself (``supervise``), and is interrupted if this process ends. It has a process
    group of its own, so that Ctrl-C in a terminal reaches it once, from here: it then ends as it does in a shell.

    Parameters
    ----------
    on_line
        Called in another thread with each line on stderr, when it comes.

    Raises
    ------
    KeyboardInterrupt
        After the command has ended; a second one kills it.
    """
    before = oom_kills()
    with subprocess.Popen(
        python_command(module, arguments),
        env=python_environment({CALLER: str(os.getpid())}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    ) as process:
        try:
            readers = out, err = _Reader(process.stdout), _Reader(process.stderr, on_line)
            while any(reader.is_alive() for reader in readers):
                for reader in readers:
                    reader.join(SPELL)
            process.wait()
        except BaseException:
            _interrupt(process)
            raise
    return Finished(read_exit(process.returncode, kills_before=before), out.content, err.content)


class _Reader(threading.Thread):
    """Reads a pipe to its end."""

    def __init__(self, pipe: IO[bytes] | None, on_line: Callable[[str], object] = lambda line: None) -> None:
        super().__init__(name="peakline-reader", daemon=True)
        self._pipe, self._on_line = pipe, on_line
        self.content = b""
        self.start()

    def run(self) -> None:
        """Keep every line, and tell of it."""
        lines = []
        with suppress(OSError, ValueError):  # the pipe is closed when the caller is interrupted
            for line in self._pipe or ():
                lines.append(line)
                with suppress(Exception):  # a pipe that nobody reads would stop the child
                    self._on_line(line.decode("utf-8", "replace").rstrip())
        self.content = b"".join(lines)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Ask a command to end and wait until it has; kill its process group if this process is interrupted again."""
    try:
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(SPELL)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise


def read_exit(status: int, *, kills_before: int | None, cgroup_kills: int = 0, timed_out: bool = False) -> ChildExit:
    """Tell how a child ended.

    Parameters
    ----------
    status
        As ``ChildExit.status``.
    kills_before
        Result of ``oom_kills`` before the child was started.
    cgroup_kills
        Number of kills by the kernel in the child's own cgroup for its limit.
    """
    killed = status == -signal.SIGKILL and not timed_out and (kills_before is None or oom_kills() != kills_before)
    return ChildExit(status, bool(cgroup_kills) or killed or status == EXIT_DOES_NOT_FIT, timed_out)


def oom_kills() -> int | None:
    """Processes that the kernel has killed for want of memory since it started; ``None`` if it does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/vmstat").read_text().partition("\noom_kill ")[2].split()[0])
    return None


@dataclass(frozen=True, slots=True)
class Walls:
    """The walls that its parent means this process to have; see ``run_module``."""

    ceiling: int | None = None
    """Bytes that this process may hold."""
    cgroup: Path | None = None
    """An empty memory cgroup for it, where one could be made."""

    @classmethod
    def of_this_process(cls) -> "Walls":
        """Read from the environment."""
        ceiling, _, cgroup = os.environ.get(_WALLS, "").partition(" ")
        return cls(int(ceiling) if ceiling else None, Path(cgroup) if cgroup else None)

    def watch(self) -> None:
        """Start the watchdog that ends this process at its ceiling (``guard.rss_watchdog``)."""
        if self.ceiling is not None:
            guard.rss_watchdog(self.ceiling, margin=CGROUP_MARGIN if self.cgroup else guard.WATCHDOG_MARGIN)

    def stand(self, *, threads: int = 2, slack: int = guard.SLACK) -> None:
        """Set the soft wall and enter the cgroup, once libraries have loaded: what they reserve then is not data."""
        if self.ceiling is None:
            return
        guard.soft_wall(self.ceiling, threads=threads, slack=slack)
        room = self.ceiling - CGROUP_MARGIN - resident()  # nothing of what it holds is charged to the cgroup
        if self.cgroup is not None and guard.limit(self.cgroup, max(0, room)):
            guard.enter(self.cgroup)


def run_work(work: Callable[[], None]) -> NoReturn:
    """The ``main`` of a child: do ``work`` and end by exit code 0, by 3 if memory ran out, or by 1 with a traceback."""
    die_with_parent()
    try:
        work()
    except Exception as error:
        if not guard.is_out_of_memory(error):
            raise
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(EXIT_DOES_NOT_FIT)
    sys.exit(EXIT_OK)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended just before
        os._exit(EXIT_UNFORESEEN)


def supervise(
    command: Sequence[str], *, name: str, ceiling: int, variables: Mapping[str, str], json: bool, record: Path | None
) -> NoReturn:
    """Start a command as a child in a cgroup of its ceiling, and become its supervisor.

    This process replaces itself by ``supervisor.py``, which ends with the child's exit code and writes the record if
    the child is killed. If there is no cgroup, it watches the tree. If the supervisor dies, the child is interrupted.

    Parameters
    ----------
    command
        As ``python_command`` makes it.
    name
        The command's name in messages: ``"imaging train"``.
    ceiling
        Bytes that the whole process tree may hold.
    variables
        Environment variables that must be set before ``main`` (``glibc.environment``).
    json
        True to write the record on stdout too if the child is killed.
    record
        Path of that record; ``None`` to write none.
    """
    libc = ctypes.CDLL(None)
    if caller := os.environ.pop(CALLER, ""):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # kept by ``execv``; the supervisor passes the signal on
        if str(os.getppid()) != caller:  # it ended just before
            os._exit(EXIT_UNFORESEEN)
    cgroup = guard.hard_wall(max(ceiling, guard.LEAST_WALL))
    environment = python_environment({**variables, SUPERVISED: str(os.getpid()), guard.WALL: str(cgroup or "")})
    awaited = (*supervisor.PASSED_ON, supervisor.PLANNED, supervisor.UNWALLED)
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)

    def behind_the_wall() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        with suppress(OSError):
            guard.enter(cgroup)

    child = subprocess.Popen(command, env=environment, preexec_fn=behind_the_wall)
    if cgroup is not None and not guard.holds(cgroup, child.pid):
        cgroup.rmdir()
        cgroup = None
    script = supervisor_file()
    arguments = [str(child.pid), str(cgroup or ""), name, str(ceiling), "json" if json else "", str(record or "")]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-I", "-S", script, *arguments])


def supervisor_file() -> str:
    """Return a path by which this process, once replaced, can run the supervisor's compiled code.

    Compiling it there would take 0.7 MiB of the user's ceiling, and compiled files are not kept everywhere.
    """
    code = marshal.dumps(compile(Path(supervisor.__file__).read_bytes(), supervisor.__file__, "exec", optimize=2))
    content = MAGIC_NUMBER + bytes(_PYC_HEADER - len(MAGIC_NUMBER)) + code
    file = os.memfd_create("supervisor", 0)
    try:
        written = os.write(file, content)
    except OSError:
        written = 0
    if written < len(content):  # a limit of the size of files counts here too
        return supervisor.__file__
    os.lseek(file, 0, os.SEEK_SET)
    return f"/proc/self/fd/{file}"


def supervisor_pid() -> int | None:
    """Return the pid of this process's supervisor; ``None`` if it has none."""
    pid = os.environ.get(SUPERVISED, "")
    return int(pid) if pid.isdigit() and int(pid) == os.getppid() else None


def tell_supervisor(word: signal.Signals) -> None:
    """Tell this process's supervisor, if it has one, what counts from now on.

    Parameters
    ----------
    word
        ``supervisor.PLANNED``: the ceiling; ``supervisor.UNWALLED``: no limit, since something has to be measured in
        order to name a ceiling, and a refusal follows.
    """
    if (pid := supervisor_pid()) is not None:
        with suppress(OSError):
            os.kill(pid, word)
