"""Set glibc's allocator so that resident memory equals live memory.

glibc raises its mmap threshold up to 32 MiB as large blocks are freed, so tensors land in the heap and fragment it:
the same 3D U-Net step peaks at 413 to 458 MiB by default and at 303 to 306 MiB with the threshold pinned. The cost
is page faults, most of which transparent huge pages avoid (a tunable that is read at process start).
"""

import ctypes
import os
from functools import cache

from common.memory.process.budget import KIB, MIB

MMAP_THRESHOLD = 128 * KIB
"""Size from which a block gets a mapping of its own, which goes back to the kernel when the block is freed."""
UNPINNED_MMAP_THRESHOLD = 32 * MIB
"""The largest threshold that glibc accepts; larger blocks are always mapped."""
TRIM_THRESHOLD = 1 * MIB
"""Free bytes at the end of the heap from which it is trimmed at once."""
UNPINNED_TRIM_THRESHOLD = -1
"""Never trim automatically; the next step reuses this memory. ``common.memory.process.bounded_heap`` trims when it has
to."""

HUGE_PAGE = 2 * MIB
"""Unit by which the heap grows with ``tunables(huge_pages=True)``; where it begins differs from start to start."""

TUNABLES = "GLIBC_TUNABLES"
"""Environment variable that glibc reads at process start."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@cache
def libc() -> ctypes.CDLL | None:
    """Return the C library; ``None`` if its allocator has no ``mallopt`` (musl, macOS)."""
    try:
        library = ctypes.CDLL(None)
    except OSError:
        return None
    return library if hasattr(library, "mallopt") else None


class Statistics(ctypes.Structure):
    """glibc's ``struct mallinfo2``.

    ``uordblks``: bytes of the heap in use; ``hblkhd``: bytes of blocks with a mapping of their own; ``keepcost``: free
    bytes at the end of the heap.
    """

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def statistics() -> Statistics | None:
    """Read the allocator's statistics; ``None`` if the C library has no ``mallinfo2`` (musl, glibc before 2.33)."""
    library = libc()
    if library is None or not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = Statistics
    current: Statistics = library.mallinfo2()
    return current


def map_from(size: int) -> bool:
    """Give blocks of at least ``size`` bytes a mapping of their own; ``False`` if the allocator has no ``mallopt``."""
    library = libc()
    return library is not None and bool(library.mallopt(_M_MMAP_THRESHOLD, size))


def return_from(size: int) -> bool:
    """Trim the heap whenever ``size`` bytes at its end are free; ``False`` if the allocator has no ``mallopt``."""
    library = libc()
    return library is not None and bool(library.mallopt(_M_TRIM_THRESHOLD, size))


def pin_thresholds() -> bool:
    """Pin both thresholds in this process, so that they no longer adapt; ``False`` as in ``map_from``."""
    return map_from(MMAP_THRESHOLD) and return_from(TRIM_THRESHOLD)


def unpin_thresholds() -> bool:
    """Put blocks of up to 32 MiB in the heap again, where they are reused without page faults.

    With pinned thresholds a training step on small patches takes 1.4 to 1.6 times as long. Without, the heap fragments,
    unless ``common.memory.process.bounded_heap`` chooses layer by layer.
    """
    return map_from(UNPINNED_MMAP_THRESHOLD) and return_from(UNPINNED_TRIM_THRESHOLD)


def one_arena() -> None:
    """Let all threads that start from now on allocate in one heap: each that has its own keeps what it has freed."""
    library = libc()
    if library is not None:
        library.mallopt(_M_ARENA_MAX, 1)


def trim() -> None:
    """Return the free pages of the heap to the kernel."""
    library = libc()
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def environment(threads: int) -> dict[str, str]:
    """Return environment variables for a child that computes with ``threads`` threads.

    Libraries read them before ``main``, so a running process cannot set them.
    """
    variables = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    # Waiting threads spin briefly, then sleep: with libgomp's default of 300,000 rounds a step of training takes two
    # to ten times as long on a shared machine; without any it is a tenth slower on a quiet one.
    variables["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "1000")
    # By default MKL never frees the buffers of its matrix products (25 MiB on two threads). Freed after each product,
    # they are part of that operator's workspace; it takes at most 40 microseconds a call.
    variables["MKL_DISABLE_FAST_MM"] = "1"
    return variables


def tunables(*, huge_pages: bool, merge: bool = False) -> dict[str, str]:
    """Return the variable with glibc's tunables for a child; the user's other tunables are kept.

    Parameters
    ----------
    huge_pages
        True for transparent huge pages in malloc's mappings: fewer page faults at the same peak if tensors are large.
        Buffers that are touched only in part (BLAS) grow by whole huge pages.
    merge
        True to merge freed blocks with their neighbours at once instead of caching small ones
        (see ``common.memory.process.bounded_heap``).
    """
    wanted = {"glibc.malloc.hugetlb": "1"} if huge_pages else {}
    wanted |= {"glibc.malloc.tcache_count": "0", "glibc.malloc.mxfast": "0"} if merge else {}
    if not wanted:
        return {}
    present = [t for t in os.environ.get(TUNABLES, "").split(":") if t and t.partition("=")[0] not in wanted]
    return {TUNABLES: ":".join([*present, *(f"{name}={value}" for name, value in wanted.items())])}


def huge_pages() -> bool:
    """Tell whether this process was started with ``tunables(huge_pages=True)``."""
    return "glibc.malloc.hugetlb=1" in os.environ.get(TUNABLES, "").split(":")
