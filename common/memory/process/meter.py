"""True peaks, per phase.

A single process has the kernel's own high-water mark (VmHWM), which writing ``5`` to ``/proc/self/clear_refs``
resets: exact, and 13 microseconds. Children are counted by summing PSS over the live tree at every sample, so pages
shared between processes count once; what a child reached between two samples is known when it has ended. Files that a
process outside the tree maps too (another Python) count in full: PSS alone would depend on what else runs. Of the
supervisor only what is private is added to a single process, whose own mark has the files that both map.
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
"""At most so many samples are kept; beyond it every second one is dropped and the interval doubles."""
FIRST_INTERVAL = 0.05
"""Seconds between samples at the start."""


def _status(field: str, pid: int | str = "self") -> int:
    with open(f"/proc/{pid}/status", "rb") as stream:
        for line in stream:
            if line.startswith(field.encode() + b":"):
                return int(line.split()[1]) * KIB
    return 0


def resident(pid: int | str = "self") -> int:
    """Resident bytes of a process, now."""
    with open(f"/proc/{pid}/statm", "rb") as stream:
        return int(stream.read().split()[1]) * page_size()


def anonymous() -> int:
    """Of what this process holds, what is in no file: what another that loads the same libraries holds again."""
    return _status("RssAnon") or resident()


class Pages(NamedTuple):
    """What a process holds, in bytes."""

    proportional: int = 0
    """PSS: its private pages plus its share of the shared ones."""
    private: int = 0
    """What no other process maps."""
    shared: int = 0
    """What another maps too, in full."""


def pages(pid: int | str = "self") -> Pages:
    """What a process holds, of one look (2.5 ms); nothing once it is gone."""
    found: Counter[bytes] = Counter()
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as stream:
        for line in stream:
            name, *values = line.split()
            if name in (b"Pss:", b"Private_Clean:", b"Private_Dirty:", b"Shared_Clean:", b"Shared_Dirty:"):
                found[name.partition(b"_")[0]] += int(values[0]) * KIB
    return Pages(found[b"Pss:"], found[b"Private"], found[b"Shared"])


def together(tree: Iterable[Pages]) -> int:
    """What the processes of a tree hold: their PSS, or more where others share it, but each shared page once."""
    looks = list(tree)
    once = sum(look.private for look in looks) + max(look.shared for look in looks)
    return max(once, sum(look.proportional for look in looks))


_before_laps = 0
"""The highest mark before the last lap, since the last reset."""


def _mark() -> int:
    """The kernel's high-water mark."""
    with suppress(OSError):
        if peak := _status("VmHWM"):
            return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (KIB if sys.platform != "darwin" else 1)


def lifetime_peak() -> int:
    """High-water mark of this process since the last reset."""
    return max(_before_laps, _mark())


def reset_peak() -> bool:
    """Start a new high-water mark at the present resident size; ``False`` where the kernel does not allow it."""
    global _before_laps
    _before_laps = 0
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def lap() -> int:
    """The high-water mark since the last lap; ``lifetime_peak`` goes on."""
    global _before_laps
    peak = _mark()
    before = max(_before_laps, peak)
    reset_peak()
    _before_laps = before
    return peak


def children() -> list[int]:
    """Live descendants of this process."""
    found: list[int] = []
    pending = [os.getpid()]
    while pending:
        pid = pending.pop()
        with suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                below = [int(c) for c in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
                found += below
                pending += below
    return found


@dataclass(frozen=True, slots=True)
class Phase:
    """One measured phase."""

    name: str
    seconds: float
    peak_bytes: int
    start: float = 0.0
    """Seconds after the meter was made."""


def _largest_child() -> int:
    """The most that any child which has ended so far held."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (KIB if sys.platform != "darwin" else 1)


class PeakMeter:
    """Peak of this process tree, by phase, with a sampled timeline.

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
        """Resident size when the work began: interpreter and libraries."""
        self._companions = companions
        self._companion_pages: list[Pages] = []
        self._children: set[int] = set()
        """Those that lived at the last sample."""
        self._tree_peak = 0
        self._beside_child: int | None = None
        """The least that the tree held beside its largest child, in this phase."""
        self._ended_child_peak = _largest_child()  # those that ended before are not this meter's
        self._started = time.monotonic()
        self._interval = FIRST_INTERVAL
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="peakline-meter", daemon=True)

    def __enter__(self) -> "PeakMeter":
        self._weigh_companions()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a block of work. Phases do not nest."""
        began = time.monotonic()
        reset_peak()
        self._tree_peak, self._beside_child = 0, None
        try:
            yield
        finally:
            self.sample()
            self._record(name, began)

    def rename_last(self, name: str) -> None:
        """Give the phase that just ended another name, once it is known what it was."""
        self.phases[-1] = replace(self.phases[-1], name=name)

    def _weigh_companions(self) -> None:
        """Their share settles as both processes come to map the same libraries."""
        self._companion_pages = [pages(pid) for pid in self._companions]

    @property
    def _companion_private(self) -> int:
        return sum(look.private for look in self._companion_pages)

    def _record(self, name: str, began: float) -> None:
        self._weigh_companions()
        own = lifetime_peak() + self._companion_private
        before, self._ended_child_peak = self._ended_child_peak, _largest_child()
        # A child that grew between two samples: the tree held at least what it held, and the rest. The kernel counts
        # what a process was before ``exec`` as its own: up to our peak it may be us.
        if self._ended_child_peak > max(before, lifetime_peak()):
            rest = self._companion_private if self._beside_child is None else self._beside_child
            self._tree_peak = max(self._tree_peak, self._ended_child_peak + rest)
        if self._tree_peak > own:
            self.method = "pss"
        peak, seconds = max(own, self._tree_peak), time.monotonic() - began
        self.phases.append(Phase(name, seconds, peak, began - self._started))

    @property
    def peak_bytes(self) -> int:
        """The run's peak: the maximum over phases."""
        return max((phase.peak_bytes for phase in self.phases), default=lifetime_peak() + self._companion_private)

    def sample(self) -> None:
        """Take one sample of the tree's size."""
        below, before = set(children()), self._children
        self._children = below
        size = resident() + self._companion_private
        if below:
            # Until it has become another program, a new child may be this very process, seen twice (``vfork``).
            grown = below & before
            looks = [pages(pid) for pid in grown or below]
            whole = together([pages(), *looks, *self._companion_pages])
            rest = whole - max(look.private + look.shared for look in looks)
            self._beside_child = min(rest, self._beside_child or rest)
            if grown:
                size = whole
                self._tree_peak = max(self._tree_peak, size)
        self.timeline.append((round(time.monotonic() - self._started, 3), size))
        if len(self.timeline) > TIMELINE_POINTS:
            self.timeline = self.timeline[::2]
            self._interval *= 2

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()
