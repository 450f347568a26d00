"""Keep the ceiling while running: a soft wall that raises, and a hard wall that kills.

The soft wall is ``RLIMIT_DATA``: private writable mappings of this process. Set after the imports, it turns an
allocation beyond the ceiling into an exception that a smaller micro-batch can answer. The hard wall is a memory
cgroup, where one can be written; once the plan stands, ``lower_hard_wall`` sets it so that the whole tree stays below
the ceiling. Elsewhere the supervisor watches the tree (``common.memory.process.supervisor``).
``common.memory.process.child`` starts the process that is kept behind both.
"""

import gc
import os
import resource
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from common.errors import EXIT_DOES_NOT_FIT
from common.memory.process import glibc
from common.memory.process.budget import MIB, format_size, memory_cgroups
from common.memory.process.meter import _status, anonymous, resident

WALL = "PEAKLINE_HARD_WALL"
"""Environment variable with the path of the cgroup that the command was started in; empty if there is none."""
LEAST_WALL = 128 * MIB
"""Smallest limit of a hard wall while planning: below it the kernel would kill the planning process (25 to 60 MiB, and
a child) before that can refuse."""

SUPERVISOR_BYTES = 4 * MIB
"""Private memory of the supervisor: measured 3.6 to 3.7 MiB. The files that it maps, the command maps too."""
THREAD_STACK = 8 * MIB
"""Address space that each thread's stack reserves and hardly touches."""
SLACK = 96 * MIB
"""Writable mappings that libraries reserve and hardly touch. OpenBLAS maps 32 MiB for each concurrent caller at first
use, and spins for ever if it cannot, so the soft wall must leave room for them."""

WATCHDOG_SECONDS = 0.001
"""Interval between two readings of the watchdog."""
WATCHDOG_MARGIN = 16 * MIB
"""Growth of a process between two readings: measured up to 12 MiB with all cores busy."""

NO_HARD_WALL = "no hard wall: no memory cgroup can be written here; the supervisor watches instead"
NO_SOFT_WALL = "no soft wall: RLIMIT_DATA cannot be set here"
LOW_SOFT_WALL = "soft wall below the ceiling: RLIMIT_DATA is limited from outside (ulimit -d)"

_standing: dict[str, int] = {}
"""Arguments of the present soft wall; empty if there is none."""

_PREFIX = "peakline-"
"""Name of a cgroup of ours: this prefix and the pid of the process that made it."""

_OOM_MESSAGES = (
    "can't allocate memory",  # torch DefaultCPUAllocator
    "not enough memory",  # torch on some platforms
    "could not create a primitive",  # oneDNN
    "could not create a memory object",  # oneDNN
    "failed to allocate",  # OpenVINO's CPU plugin, ONNX Runtime
    "unable to allocate",  # NumPy's ArrayMemoryError and others
    "could not allocate bytes object",  # pybind11, in the ONNX exporter
    "std::bad_alloc",  # C++ in OpenVINO, implicit, Arrow
    "cannot allocate memory",  # errno ENOMEM as text
    "malloc of size",  # Arrow
    "out of memory",  # CUDA
    "_alloc_failed",  # cuBLAS, cuDNN
    "can't start new thread",  # its stack does not fit
    "thread creation failed",  # the same in libgomp
    "failed to map segment",  # a shared library that is loaded late
)


def soft_wall(ceiling: int, *, threads: int = 2, slack: int = SLACK) -> bool:
    """Limit the resident memory of this process by ``RLIMIT_DATA``, starting from what is mapped and resident now.

    An allocation beyond the limit then fails, so that Python raises ``MemoryError`` and libraries raise errors that
    ``is_out_of_memory`` recognises.

    Parameters
    ----------
    ceiling
        Resident bytes that this process may reach.
    threads
        Threads that may still start; their stacks are reserved but hardly touched.
    slack
        Bytes of mappings that the libraries in use reserve and hardly touch.

    Returns
    -------
    bool
        ``False`` if the limit cannot be set; then only the meter shows an excess.
    """
    _standing.update(ceiling=ceiling, threads=threads, slack=slack)
    limit = _status("VmData") + max(0, ceiling - resident()) + slack + threads * THREAD_STACK
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    except (OSError, ValueError):
        return False
    return True


def rss_watchdog(ceiling: int, *, margin: int = WATCHDOG_MARGIN) -> None:
    """End this process by exit code 3 once its resident size exceeds ``ceiling - margin``, with a line on stderr.

    The soft wall leaves room for what libraries reserve, and an operator that is too large would fill that room; a
    watchdog sees resident memory only. It is for processes that may end at any instant, such as probes. If the kernel
    has to kill for want of memory, it kills this process before its parents.

    Parameters
    ----------
    ceiling
        Resident bytes that this process may reach.
    margin
        Bytes below the ceiling at which it is ended, since it may grow between two readings.
    """
    limit_bytes = ceiling - margin
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")

    def watch() -> None:
        while (size := resident()) <= limit_bytes:
            time.sleep(WATCHDOG_SECONDS)
        sys.stderr.write(f"\nstopped at {format_size(size)} of {format_size(max(0, ceiling))}\n")
        sys.stderr.flush()
        os._exit(EXIT_DOES_NOT_FIT)

    threading.Thread(target=watch, name="peakline-watchdog", daemon=True).start()


def room() -> int | None:
    """Return the bytes that are left for a child under the ceiling of the soft wall; ``None`` if there is no wall.

    Files that both processes map are counted once, in the child.
    """
    return max(0, _standing["ceiling"] - anonymous()) if _standing else None


def missing_walls(*, soft: bool) -> list[str]:
    """List the walls that could not be set, as texts for the record; ``soft`` is what ``soft_wall`` returned."""
    missing = [] if standing() else [NO_HARD_WALL]
    limit, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if not soft:
        missing.append(NO_SOFT_WALL)
    elif limit == hard != resource.RLIM_INFINITY:
        missing.append(LOW_SOFT_WALL)
    return missing


def lift_soft_wall() -> None:
    """Remove the soft wall, for instance one inherited from the parent, before libraries are loaded."""
    _standing.clear()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception is an allocation failure, by its type or by its message.

    Only exceptions by which libraries report allocation failures are judged by their messages.
    """
    if isinstance(error, MemoryError):
        return True
    if type(error).__name__ in ("OutOfMemoryError", "ArrowMemoryError"):
        return True
    from_library = isinstance(error, (RuntimeError, OSError, ImportError)) or "onnxruntime" in type(error).__module__
    return from_library and names_out_of_memory(str(error))


def names_out_of_memory(text: str) -> bool:
    """Tell whether a text has a message by which one of our libraries reports an allocation failure."""
    return any(message in text.lower() for message in _OOM_MESSAGES)


def release() -> None:
    """Return memory to the kernel after a failed step.

    Call it outside the ``except`` block, because the traceback keeps the step's tensors alive. If mapping fails, glibc
    grows the heap instead and keeps its addresses after the pages have been returned, which the kernel counts as data.
    So the soft wall is set again from what is resident.
    """
    gc.collect()
    glibc.trim()
    if _standing:
        soft_wall(**_standing)


def hard_wall(ceiling: int) -> Path | None:
    """Make a memory cgroup limited to ``ceiling`` bytes below this process's own; ``None`` if that is not permitted.

    ``enter`` moves a process into it, ``take_down`` removes it.
    """
    parent = next(memory_cgroups(), None)
    if parent is None or not parent.is_dir():
        return None
    _remove_stale(parent)
    cgroup = parent / f"{_PREFIX}{os.getpid()}"
    try:
        cgroup.mkdir(exist_ok=True)
    except OSError:
        return None
    if limit(cgroup, ceiling):
        return cgroup
    with suppress(OSError):
        cgroup.rmdir()
    return None


def standing() -> Path | None:
    """Return the cgroup that this command was started in; ``None`` if there is none."""
    cgroup = Path(os.environ.get(WALL) or "/nowhere")
    return cgroup if holds(cgroup, os.getpid()) else None


def lower_hard_wall(ceiling: int, held: int) -> bool:
    """Limit this process's cgroup to what the ceiling leaves of it, if there is a cgroup.

    A page of a library is charged to whoever touched it first. Pages that this process tree maps but others are charged
    for are part of its size, so they are taken off the limit.

    Parameters
    ----------
    ceiling
        Bytes that the whole process tree may hold.
    held
        Bytes that it holds now (``meter.PeakMeter.tree_bytes``).

    Returns
    -------
    bool
        ``False`` if the tree holds more than that already, with the kernel's own memory for it.
    """
    cgroup = standing()
    if held > ceiling or cgroup is None:
        return held <= ceiling
    others = max(0, held - _charged(cgroup))
    return limit(cgroup, max(0, ceiling - others))


def lift_hard_wall() -> None:
    """Raise the limit of this process's cgroup to all memory, until ``lower_hard_wall`` sets it again.

    What ``total_memory`` finds is that very limit; those of a container around it hold anyway.
    """
    if (cgroup := standing()) is not None:
        limit(cgroup, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _charged(cgroup: Path) -> int:
    """Return the bytes of resident pages that a cgroup is charged for; without files that no process maps."""
    fields: dict[str, str] = {}
    with suppress(OSError, ValueError):
        fields = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    if "total_rss" in fields:
        return int(fields["total_rss"]) + int(fields["total_mapped_file"])
    return int(fields.get("anon", 0)) + int(fields.get("file_mapped", 0))


def _reclaimed(cgroup: Path, ceiling: int) -> bool:
    """Have a cgroup of version 2 reclaim what is above ``ceiling``; whether it could. A lower limit would kill."""
    try:
        (cgroup / "memory.high").write_text(str(ceiling))
        usage = int((cgroup / "memory.current").read_text())
        (cgroup / "memory.high").write_text("max")
    except (OSError, ValueError):
        return False
    return usage <= ceiling


_WITH_SWAP = "memory.memsw.limit_in_bytes"
"""File of version 1 with the limit of memory and swap together."""


def limit(cgroup: Path, ceiling: int) -> bool:
    """Set the limit of a cgroup in bytes; ``False`` if that is not permitted, or if it is in use beyond that."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        with suppress(OSError):
            if (cgroup / name).exists():
                if name == "memory.max" and not _reclaimed(cgroup, ceiling):
                    return False
                with suppress(OSError):  # with swap it must not be less than without, so it is raised first
                    if (cgroup / _WITH_SWAP).exists():
                        (cgroup / _WITH_SWAP).write_text(str(ceiling))
                (cgroup / name).write_text(str(ceiling))
                # Pages must not move into swap instead. Some kernels of version 1 do not account swap.
                for file, value in (
                    ("memory.swap.max", "0"),
                    ("memory.swappiness", "0"),
                    (_WITH_SWAP, str(ceiling)),
                ):
                    with suppress(OSError):
                        if (cgroup / file).exists():
                            (cgroup / file).write_text(value)
                return True
    return False


def enter(cgroup: Path | None) -> None:
    """Move this process into a cgroup, if there is one."""
    if cgroup is not None:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def holds(cgroup: Path, pid: int) -> bool:
    """Tell whether a process is in a cgroup: a container may let one be made and not be entered."""
    try:
        return str(pid) in (cgroup / "cgroup.procs").read_text().split()
    except OSError:
        return False


def take_down(cgroup: Path | None) -> int:
    """Remove a cgroup that has no processes left; returns how many the kernel killed for its limit."""
    if cgroup is None:
        return 0
    kills = kernel_kills(cgroup)
    with suppress(OSError):
        cgroup.rmdir()
    return kills


def kernel_kills(cgroup: Path) -> int:
    """Return how many processes of a cgroup the kernel has killed for its limit."""
    for name in ("memory.events", "memory.oom_control"):
        with suppress(OSError):
            fields = dict(line.split() for line in (cgroup / name).read_text().splitlines())
            return int(fields.get("oom_kill", 0))
    return 0


def _remove_stale(parent: Path) -> None:
    """Remove empty cgroups of processes that no longer exist: one that was killed could not remove its own."""
    for cgroup in parent.glob(f"{_PREFIX}*"):
        pid = cgroup.name.removeprefix(_PREFIX)
        if pid.isdigit() and not Path("/proc", pid).exists():
            _remove_stale(cgroup)  # cgroups of its probes
            with suppress(OSError):  # not empty: a child is still running
                cgroup.rmdir()


def leave_hard_wall() -> None:
    """Move this process out of the cgroup that its supervisor made for the command."""
    if cgroup := os.environ.get(WALL):
        with suppress(OSError):
            (Path(cgroup).parent / "cgroup.procs").write_text(str(os.getpid()))
