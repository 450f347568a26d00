"""Measure the peak memory of a process tree, by phase.

For a single process the kernel keeps a high-water mark of the resident size (VmHWM). Writing ``5`` to
``/proc/self/clear_refs`` resets it, which takes 13 microseconds. The size of a tree is the sum of PSS over its live
processes, sampled, so that shared pages count once; a child's own peak is read when it has ended. Pages of files that
a process outside the tree maps too (another Python) count in full, because PSS depends on what else is running. Only
the private pages of the supervisor are added to a single process: the files that both map are in that process's mark.
"""

import os
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from common.memory.process.budget import KIB, page_size

TIMELINE_POINTS = 1000
"""Largest number of samples kept; when it is exceeded, every second one is dropped and the interval doubles."""
FIRST_INTERVAL = 0.05
"""Seconds between samples at the start."""


def _status(field: str, pid: int | str = "self") -> int:
    with open(f"/proc/{pid}/status", "rb") as stream:
        for line in stream:
            if line.startswith(field.encode() + b":"):
                return int(line.split()[1]) * KIB
    return 0


def resident(pid: int | str = "self") -> int:
    """Return the resident bytes of a process."""
    with open(f"/proc/{pid}/statm", "rb") as stream:
        return int(stream.read().split()[1]) * page_size()


def anonymous() -> int:
    """Return the resident bytes of this process that no file backs: a child does not share it."""
    return _status("RssAnon") or resident()


def file_bytes() -> int:
    """Return the resident bytes of this process that files back, most of them of libraries."""
    return _status("RssFile")


class Pages(NamedTuple):
    """The resident pages of a process, in bytes."""

    proportional: int = 0
    """PSS: private pages plus each shared page divided by the number of processes that map it."""
    private: int = 0
    """Pages that no other process maps."""
    shared: int = 0
    """Pages that another process maps too, in full."""


def pages(pid: int | str = "self") -> Pages:
    """Read the pages of a process, which takes 2.5 ms; all zero if it has ended."""
    sizes: Counter[bytes] = Counter()
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as stream:
        for line in stream:
            name, *values = line.split()
            if name in (b"Pss:", b"Private_Clean:", b"Private_Dirty:", b"Shared_Clean:", b"Shared_Dirty:"):
                sizes[name.partition(b"_")[0]] += int(values[0]) * KIB
    return Pages(sizes[b"Pss:"], sizes[b"Private"], sizes[b"Shared"])


def together(tree: Iterable[Pages]) -> int:
    """Return the size of a process tree: the sum of PSS, or private plus shared counted once if that is larger."""
    processes = list(tree)
    once = sum(each.private for each in processes) + max(each.shared for each in processes)
    return max(once, sum(each.proportional for each in processes))


_before_laps = 0
"""The highest mark between the last reset and the last lap."""


def _mark() -> int:
    """Read the kernel's high-water mark in bytes."""
    with suppress(OSError):
        if peak := _status("VmHWM"):
            return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (KIB if sys.platform != "darwin" else 1)


def lifetime_peak() -> int:
    """Return the peak resident bytes of this process since the last ``reset_peak``, or since its start."""
    return max(_before_laps, _mark())


def reset_peak() -> bool:
    """Set the high-water mark to the present resident size; ``False`` if the kernel does not permit it."""
    global _before_laps
    _before_laps = 0
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def lap() -> int:
    """Return the peak since the last lap and start the next one; ``lifetime_peak`` still covers both."""
    global _before_laps
    peak = _mark()
    before = max(_before_laps, peak)
    reset_peak()
    _before_laps = before
    return peak


_fork_peak = 0
"""The largest size of this process and a fork of it together since the current phase began."""


def record_fork(pid: int) -> None:
    """Measure a fork of this process that has done its work and waits: its peak, and what the two do not share.

    The fork shares this process's pages until either writes to them; then both have a copy. So this process's private
    pages are most at the fork's end, and a sampler that sees the fork only at its start misses them. Libraries that
    this process maps are not private where a process outside the tree maps them too, and the fork does not have them
    until it touches them, so both processes are read, and what the fork has returned since its peak is added.
    """
    global _fork_peak
    with suppress(OSError):  # it was killed
        returned = _status("VmHWM", pid) - resident(pid)
        _fork_peak = max(_fork_peak, together([pages(), pages(pid)]) + returned)


def children() -> list[int]:
    """Return the pids of the live descendants of this process."""
    pids: list[int] = []
    pending = [os.getpid()]
    while pending:
        pid = pending.pop()
        with suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                below = [int(c) for c in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
                pids += below
                pending += below
    return pids


@dataclass(frozen=True, slots=True)
class Phase:
    """One measured phase."""

    name: str
    seconds: float
    peak_bytes: int
    start: float = 0.0
    """Seconds from the meter's construction to the phase's begin."""


def _largest_child() -> int:
    """Return the peak of the largest child that has ended so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (KIB if sys.platform != "darwin" else 1)


class PeakMeter:
    """Measure the peak of this process tree, by phase, and sample a timeline.

    Parameters
    ----------
    companions
        Pids of processes outside the tree whose private pages count too: the supervisor.

    Examples
    --------
    >>> with PeakMeter() as meter:
    ...     with meter.phase("work"):
    ...         block = bytearray(64 << 20)
    >>> meter.phases[0].peak_bytes > 64 << 20
    True
    """

    def __init__(self, *, companions: tuple[int, ...] = ()) -> None:
        self.phases: list[Phase] = []
        self.timeline: list[tuple[float, int]] = []
        self.method: Literal["hwm", "pss"] = "hwm"
        self.floor_bytes = 0
        """The baseline: resident bytes after the warm-up."""
        self._companions = companions
        self._companion_pages: list[Pages] = []
        self._children: set[int] = set()
        """Pids of the children at the last sample."""
        self._tree_peak = 0
        self._beside_child: int | None = None
        """Smallest size of the tree without its largest child, in this phase."""
        self._ended_child_peak = _largest_child()  # children that ended earlier do not count
        self._number = 0
        """Number of phases begun: a sample that a phase's end overtakes belongs to no other phase."""
        self._started = time.monotonic()
        self._interval = FIRST_INTERVAL
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="peakline-meter", daemon=True)

    def __enter__(self) -> "PeakMeter":
        self._read_companions()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the peak of a block of work. Phases do not nest."""
        global _fork_peak
        began = time.monotonic()
        reset_peak()
        self._number += 1
        self._tree_peak, self._beside_child, _fork_peak = 0, None, 0
        try:
            yield
        finally:
            self.sample()
            self._record(name, began)

    def rename_last(self, name: str) -> None:
        """Rename the last phase."""
        self.phases[-1] = replace(self.phases[-1], name=name)

    def _read_companions(self) -> None:
        """Read the companions' pages. The private ones change until both processes have mapped the same libraries."""
        self._companion_pages = [pages(pid) for pid in self._companions]

    @property
    def _companion_private(self) -> int:
        return sum(each.private for each in self._companion_pages)

    def _record(self, name: str, began: float) -> None:
        self._read_companions()
        own = lifetime_peak() + self._companion_private
        before, self._ended_child_peak = self._ended_child_peak, _largest_child()
        # A child may have grown between two samples. The tree's peak is then at least that child's peak and the rest of
        # the tree. A child's mark includes the time before ``exec``, when it was a copy of this process.
        if self._ended_child_peak > max(before, lifetime_peak()):
            rest = self._companion_private if self._beside_child is None else self._beside_child
            self._tree_peak = max(self._tree_peak, self._ended_child_peak + rest)
        if _fork_peak:
            self._tree_peak = max(self._tree_peak, _fork_peak + self._companion_private)
        if self._tree_peak > own:
            self.method = "pss"
        peak, seconds = max(own, self._tree_peak), time.monotonic() - began
        self.phases.append(Phase(name, seconds, peak, began - self._started))

    @property
    def peak_bytes(self) -> int:
        """The peak of the run in bytes: the maximum over phases."""
        return max((phase.peak_bytes for phase in self.phases), default=lifetime_peak() + self._companion_private)

    @property
    def peaks(self) -> dict[str, int]:
        """The peak in bytes by phase; the largest of phases with the same name."""
        peaks: dict[str, int] = {}
        for phase in self.phases:
            peaks[phase.name] = max(phase.peak_bytes, peaks.get(phase.name, 0))
        return peaks

    def tree_bytes(self) -> int:
        """Return the present size of the process tree, companions included."""
        self._read_companions()
        return together([pages(), *map(pages, children()), *self._companion_pages])

    def sample(self) -> None:
        """Add a sample of the tree's size to the timeline."""
        number, below, before = self._number, set(children()), self._children
        self._children = below
        size = resident() + self._companion_private
        if below:
            # Before ``exec`` a new child may share all pages with this process (``vfork``), which would count twice.
            grown = below & before
            own = pages()  # first: what it shares with a fork becomes private when that ends
            sizes = [pages(pid) for pid in grown or below]
            whole = together([own, *sizes, *self._companion_pages])
            rest = whole - max(each.private + each.shared for each in sizes)
            if grown:
                size = whole
            if number == self._number:
                self._beside_child = min(rest, self._beside_child or rest)
                self._tree_peak = max(self._tree_peak, size if grown else 0)
        self.timeline.append((round(time.monotonic() - self._started, 3), size))
        if len(self.timeline) > TIMELINE_POINTS:
            self.timeline = self.timeline[::2]
            self._interval *= 2

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()
