"""Keep the ceiling while running: a soft wall that raises, and a hard wall that kills.

The soft wall is ``RLIMIT_DATA``: private writable mappings of this process. Set after the imports, it turns an
allocation beyond the ceiling into an exception that a smaller micro-batch can answer. The hard wall is a memory
cgroup of the ceiling's size, where one can be written. ``common.memory.process.child`` starts the process that is kept
behind both.
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
"""Environment variable in which the supervisor tells the child which cgroup holds it."""
LEAST_WALL = 128 * MIB
"""A smaller cgroup would kill the planning process (25 to 60 MiB, and a child) before it could refuse."""

SUPERVISOR_BYTES = 4 * MIB
"""What the parent process holds while the child runs: measured 3.6 to 3.7 MiB, beside files that both have mapped."""
THREAD_STACK = 8 * MIB
"""Address space that each further thread reserves and hardly touches."""
SLACK = 96 * MIB
"""Writable mappings that are reserved and hardly touched. OpenBLAS maps 32 MiB for each concurrent caller when it first
needs them, and spins for ever when it cannot: the wall must leave it that."""

WATCHDOG_SECONDS = 0.001
"""Between two looks of a patrol."""
WATCHDOG_MARGIN = 16 * MIB
"""What a process may take between two looks: measured up to 12 where all cores are busy."""

NO_HARD_WALL = "no hard wall: no memory cgroup can be written here"
NO_SOFT_WALL = "no soft wall: RLIMIT_DATA cannot be set here"
LOW_SOFT_WALL = "soft wall below the ceiling: RLIMIT_DATA is limited from outside (ulimit -d)"

_standing: dict[str, int] = {}
"""What the soft wall was set with, while this process has one."""

_PREFIX = "peakline-"
"""Names of our cgroups: this, and the supervisor's pid."""

_OOM_MESSAGES = (
    "can't allocate memory",  # torch DefaultCPUAllocator
    "not enough memory",  # torch on some platforms
    "could not create a primitive",  # oneDNN
    "could not create a memory object",  # oneDNN
    "failed to allocate",  # OpenVINO's CPU plugin, ONNX Runtime
    "unable to allocate",  # NumPy's ArrayMemoryError and others
    "std::bad_alloc",  # C++ in OpenVINO, implicit, Arrow
    "cannot allocate memory",  # errno ENOMEM as text
    "malloc of size",  # Arrow
    "out of memory",  # CUDA
    "_alloc_failed",  # cuBLAS, cuDNN
    "can't start new thread",  # its stack does not fit
)


def soft_wall(ceiling: int, *, threads: int = 2, slack: int = SLACK) -> bool:
    """Limit this process's private memory to ``ceiling``, counting what is resident now.

    Parameters
    ----------
    ceiling
        Bytes that this process may hold resident.
    threads
        Threads that may still start; their stacks are reserved but hardly touched.
    slack
        Reserved, untouched mappings of the libraries in use.

    Returns
    -------
    bool
        ``False`` where the limit cannot be set; the meter then still tells.
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
    """End this process, with a line on stderr, once it is seen to hold ``ceiling`` bytes but for the margin.

    For one that may just die, such as a probe: the soft wall must leave libraries what they reserve and hardly touch,
    and something too large would fill that. Where the kernel has to kill, it takes this process before its parents.
    """
    most = ceiling - margin
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")

    def look() -> None:
        while (size := resident()) <= most:
            time.sleep(WATCHDOG_SECONDS)
        sys.stderr.write(f"\nit holds {format_size(size)} of {format_size(max(0, ceiling))}\n")
        sys.stderr.flush()
        os._exit(EXIT_DOES_NOT_FIT)

    threading.Thread(target=look, name="peakline-watchdog", daemon=True).start()


def room() -> int | None:
    """Bytes that a child may hold beside this process under the soft wall's ceiling; ``None`` where no wall stands.

    Files that both have mapped are counted once, in the child.
    """
    return max(0, _standing["ceiling"] - anonymous()) if _standing else None


def missing_walls(*, soft: bool) -> list[str]:
    """Which walls do not stand, in words; ``soft`` is what ``soft_wall`` returned."""
    missing = [] if os.environ.get(WALL) else [NO_HARD_WALL]
    limit, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if not soft:
        missing.append(NO_SOFT_WALL)
    elif limit == hard != resource.RLIM_INFINITY:
        missing.append(LOW_SOFT_WALL)
    return missing


def lift_soft_wall() -> None:
    """Take the soft wall away, before libraries are loaded; a child inherits its parent's."""
    _standing.clear()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is an allocation failure, by its type and by the messages of the libraries we use."""
    if isinstance(error, MemoryError):
        return True
    if type(error).__name__ in ("OutOfMemoryError", "ArrowMemoryError"):
        return True
    return isinstance(error, (RuntimeError, OSError)) and names_out_of_memory(str(error))


def names_out_of_memory(text: str) -> bool:
    """Whether a message is one with which the libraries we use report an allocation failure."""
    return any(message in text.lower() for message in _OOM_MESSAGES)


def release() -> None:
    """Give memory back after a failed step; outside the ``except`` block, whose traceback pins the step's tensors.

    Where mapping fails, glibc grows the heap instead, and keeps the addresses when its pages go back: the kernel counts
    them as data. The soft wall is therefore set anew, by what is resident.
    """
    gc.collect()
    glibc.trim()
    if _standing:
        soft_wall(**_standing)


def hard_wall(ceiling: int) -> Path | None:
    """Make a cgroup limited to ``ceiling`` bytes below our own; ``None`` where none can be made.

    A process that ``enter``s is behind the wall; ``take_down`` removes it.
    """
    parent = next(memory_cgroups(), None)
    if parent is None or not parent.is_dir():
        return None
    _remove_stale(parent)
    place = parent / f"{_PREFIX}{os.getpid()}"
    try:
        place.mkdir(exist_ok=True)
    except OSError:
        return None
    if limit(place, ceiling):
        return place
    with suppress(OSError):
        place.rmdir()
    return None


def limit(place: Path, ceiling: int) -> bool:
    """Set what those behind a wall may hold together; ``False`` where it cannot be set."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        with suppress(OSError):
            if (place / name).exists():
                (place / name).write_text(str(ceiling))
                with suppress(OSError):  # no escape into swap, where swap is accounted
                    swap = place / ("memory.swap.max" if name == "memory.max" else "memory.memsw.limit_in_bytes")
                    if swap.exists():
                        swap.write_text("0" if name == "memory.max" else str(ceiling))
                return True
    return False


def enter(place: Path | None) -> None:
    """Put this process behind a wall, if there is one."""
    if place is not None:
        (place / "cgroup.procs").write_text(str(os.getpid()))


def take_down(place: Path | None) -> int:
    """Remove a wall that nobody is behind any more; returns how often the kernel killed for it."""
    if place is None:
        return 0
    kills = kernel_kills(place)
    with suppress(OSError):
        place.rmdir()
    return kills


def kernel_kills(place: Path) -> int:
    """How often the kernel killed a process in a cgroup for its limit."""
    for name in ("memory.events", "memory.oom_control"):
        with suppress(OSError):
            fields = dict(line.split() for line in (place / name).read_text().splitlines())
            return int(fields.get("oom_kill", 0))
    return 0


def _remove_stale(parent: Path) -> None:
    """Remove the empty cgroups of supervisors that are gone: killed ones could not."""
    for place in parent.glob(f"{_PREFIX}*"):
        pid = place.name.removeprefix(_PREFIX)
        if pid.isdigit() and not Path("/proc", pid).exists():
            _remove_stale(place)  # cgroups of its probes
            with suppress(OSError):  # not empty: its child lives on
                place.rmdir()


def leave_hard_wall() -> None:
    """Move this process out of the cgroup that its supervisor made."""
    if place := os.environ.get(WALL):
        with suppress(OSError):
            (Path(place).parent / "cgroup.procs").write_text(str(os.getpid()))
