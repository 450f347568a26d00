"""Counts of requests and their times, for all workers, as Prometheus reads them (its text format 0.0.4)."""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from apps.recsys.serving.web.routes import ROUTES

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of the times that are counted, in seconds."""
OTHER = len(ROUTES)
"""Number of what is no route."""
_STATUSES = 6
_WIDTH = _STATUSES + len(BUCKETS) + 2
"""Numbers of a route: requests by the first digit of their status, by time, and the sum of times."""


class Metrics:
    """Counters in memory that processes share, a part for each worker.

    Parameters
    ----------
    workers
        Number of workers.
    """

    def __init__(self, workers: int = 1) -> None:
        self._size = (OTHER + 1) * _WIDTH
        self._numbers = memoryview(mmap.mmap(-1, 8 * self._size * workers)).cast("d")
        self._workers, self.worker = workers, 0
        """The part that this process writes to."""

    def count(self, route: int, status: int, seconds: float) -> None:
        """Count a request: the number of its route, or ``OTHER``; its status, and how long it took."""
        start = self.worker * self._size + route * _WIDTH
        self._numbers[start + status // 100 % _STATUSES] += 1
        self._numbers[start + _STATUSES + bisect_left(BUCKETS, seconds)] += 1
        self._numbers[start + _WIDTH - 1] += seconds

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> bytes:
        """The page of ``/metrics``.

        Parameters
        ----------
        gauges
            What each is, and its number now, by name.
        """
        return ("\n".join(self._lines(gauges)) + "\n").encode()

    def _lines(self, gauges: Mapping[str, tuple[str, float]]) -> Iterator[str]:
        names = [*((route.method, route.path) for route in ROUTES), ("", "other")]
        rows = [self._row(number) for number in range(OTHER + 1)]
        yield "# HELP recsys_requests_total Requests by route and status."
        yield "# TYPE recsys_requests_total counter"
        for (method, path), row in zip(names, rows, strict=True):
            for digit, count in enumerate(row[:_STATUSES]):
                if count:
                    labels = f'method="{method}",route="{path}",status="{digit}xx"'
                    yield f"recsys_requests_total{{{labels}}} {count:.0f}"
        yield "# HELP recsys_request_seconds Time from a request's header to the end of its answer."
        yield "# TYPE recsys_request_seconds histogram"
        for (method, path), row in zip(names, rows, strict=True):
            total = 0.0
            for bound, count in zip((*BUCKETS, "+Inf"), row[_STATUSES:-1], strict=True):
                total += count
                if row[-1]:
                    labels = f'method="{method}",route="{path}",le="{bound}"'
                    yield f"recsys_request_seconds_bucket{{{labels}}} {total:.0f}"
            if row[-1]:
                yield f'recsys_request_seconds_sum{{method="{method}",route="{path}"}} {row[-1]:.6f}'
                yield f'recsys_request_seconds_count{{method="{method}",route="{path}"}} {total:.0f}'
        for name, (what, number) in gauges.items():
            yield f"# HELP {name} {what}"
            yield f"# TYPE {name} gauge"
            yield f"{name} {number:.10g}"

    def _row(self, route: int) -> Sequence[float]:
        starts = [worker * self._size + route * _WIDTH for worker in range(self._workers)]
        return [sum(self._numbers[start + place] for start in starts) for place in range(_WIDTH)]
