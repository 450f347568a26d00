"""Make resident memory follow live memory.

glibc raises its mmap threshold up to 32 MiB as large blocks are freed, so tensors land in the heap and fragment it:
the same 3D U-Net step peaks at 413 to 458 MiB by default and at 303 to 306 MiB with the threshold pinned. The price
is page faults; transparent huge pages for malloc (a tunable read at process start) pay most of it back.
"""

import ctypes
import os
from functools import cache

from common.memory.process.budget import KIB, MIB

MMAP_THRESHOLD = 128 * KIB
"""Blocks from this size on are mapped on their own and returned to the kernel when freed."""
UNPINNED_MMAP_THRESHOLD = 32 * MIB
"""The largest that glibc accepts; larger blocks are mapped in any case."""
TRIM_THRESHOLD = 1 * MIB
"""Free heap above this is returned at once."""
UNPINNED_TRIM_THRESHOLD = -1
"""Never: a step's end would return what the next one begins with. ``common.memory.process.bounded_heap`` returns what
is too much."""

TUNABLES = "GLIBC_TUNABLES"
"""The variable that glibc reads at process start; children inherit it."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@cache
def libc() -> ctypes.CDLL | None:
    """The C library, where its allocator can be set."""
    try:
        library = ctypes.CDLL(None)
    except OSError:
        return None
    return library if hasattr(library, "mallopt") else None


class Statistics(ctypes.Structure):
    """glibc's ``struct mallinfo2``: ``uordblks`` bytes of the heap are in use, ``hblkhd`` are mapped one by one,
    ``keepcost`` are free at the heap's end."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def statistics() -> Statistics | None:
    """What the heap holds now; ``None`` where the C library does not say (musl, glibc before 2.33)."""
    library = libc()
    if library is None or not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = Statistics
    found: Statistics = library.mallinfo2()
    return found


def map_from(size: int) -> bool:
    """Map blocks from ``size`` bytes on one by one, others live in the heap; ``False`` where the allocator has no
    ``mallopt`` (musl, macOS)."""
    library = libc()
    return library is not None and bool(library.mallopt(_M_MMAP_THRESHOLD, size))


def return_from(size: int) -> bool:
    """Return the heap's end at once where ``size`` bytes of it are free."""
    library = libc()
    return library is not None and bool(library.mallopt(_M_TRIM_THRESHOLD, size))


def pin_thresholds() -> bool:
    """Pin glibc's thresholds in this process; ``False`` as in ``map_from``."""
    return map_from(MMAP_THRESHOLD) and return_from(TRIM_THRESHOLD)


def unpin_thresholds() -> bool:
    """Let blocks of up to 32 MiB live in the heap again, where they are reused without page faults.

    Pinned, a training step on small patches takes 1.4 to 1.6 times as long as this; relaxed, the heap fragments, unless
    ``common.memory.process.bounded_heap`` decides from layer to layer.
    """
    return map_from(UNPINNED_MMAP_THRESHOLD) and return_from(UNPINNED_TRIM_THRESHOLD)


def trim() -> None:
    """Return free heap to the kernel."""
    library = libc()
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def environment(threads: int) -> dict[str, str]:
    """Variables that a child must start with: what is read before ``main`` cannot be set later."""
    variables = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    # Waiting threads spin briefly, then sleep: with libgomp's own 300,000 turns a training step takes two to ten times
    # as long when the machine is shared; with none it is a tenth slower on a quiet one.
    variables["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "1000")
    # MKL keeps the buffers of its matrix products for ever (25 MiB on two threads); freed after each product, they are
    # part of that operator's workspace. 40 microseconds a call at most.
    variables["MKL_DISABLE_FAST_MM"] = "1"
    return variables


def tunables(*, huge_pages: bool, merge: bool = False) -> dict[str, str]:
    """The same, for a child whose tensors are large; other tunables in the environment stay as they are.

    Parameters
    ----------
    huge_pages
        What malloc maps asks for transparent huge pages: fewer page faults at the same peak. Buffers that are touched
        only in part (BLAS) grow by whole huge pages, so a command without large tensors is better off without.
    merge
        Freed blocks merge with their neighbours at once (``common.memory.process.bounded_heap`` says why that matters);
        small blocks are then not cached.
    """
    wanted = {"glibc.malloc.hugetlb": "1"} if huge_pages else {}
    wanted |= {"glibc.malloc.tcache_count": "0", "glibc.malloc.mxfast": "0"} if merge else {}
    if not wanted:
        return {}
    present = [t for t in os.environ.get(TUNABLES, "").split(":") if t and t.partition("=")[0] not in wanted]
    return {TUNABLES: ":".join([*present, *(f"{name}={value}" for name, value in wanted.items())])}


def huge_pages() -> bool:
    """Whether this process was started with ``tunables(huge_pages=True)``."""
    return "glibc.malloc.hugetlb=1" in os.environ.get(TUNABLES, "").split(":")
