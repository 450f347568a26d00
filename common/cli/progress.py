"""Progress of long work: a bar on a terminal, and lines from time to time where the output is captured."""

import sys
import time
from typing import Any

from common.cli import streams

EVERY_SECONDS = 10.0
"""Least time between two lines."""


class Lines:
    """Says how far the work is, at most once in ``EVERY_SECONDS``; a part of ``tqdm``'s interface.

    Short work says nothing. A line is written when a step ends, so steps of minutes have a line each.

    Parameters
    ----------
    total
        Number of units; ``None``: not known.
    unit, label
        Names of a unit and of the work.
    clock
        Tells the seconds.
    """

    def __init__(self, *, total: float | None, unit: str, label: str, clock: Any = time.monotonic) -> None:
        self.total, self.n = total, 0.0
        self._unit, self._label, self._clock = unit, label, clock
        self._start = self._said = clock()
        self._first = 0.0
        self._more = ""

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: float = 1) -> None:
        """Add units."""
        now = self._clock()
        if not self.n and now - self._said < 1e-3:
            self._first = count  # done before, by the work that is continued
        self.n += count
        if now - self._said >= EVERY_SECONDS:
            self._said = now
            streams.say(self._line(now - self._start))

    def set_postfix(self, refresh: bool = True, **values: object) -> None:
        """Set values that the next line ends with."""
        self._more = "".join(f", {name} {value}" for name, value in values.items())

    def _line(self, seconds: float) -> str:
        """``"evaluate: 300 of 1,200 users (25 %), 30 s left"``."""
        if self.total is None:
            return f"{self._label}: {self.n:,.0f} {self._unit}s in {seconds:,.0f} s{self._more}"
        done, line = self.n - self._first, f"{self._label}: {self.n:,.0f} of {self.total:,.0f} {self._unit}s"
        line += f" ({self.n / self.total:.0%})".replace("%", " %") if self.total else ""
        if done > 0:
            line += f", {seconds / done * max(0.0, self.total - self.n):,.0f} s left"
        return line + self._more


def bar(*, total: float | None, unit: str, label: str, quiet: bool) -> Any:
    """Show progress on stderr: a context manager with ``update``."""
    if not quiet and not sys.stderr.isatty():
        return Lines(total=total, unit=unit, label=label)
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, desc=label, disable=quiet, leave=False)
