"""Counts of requests, in the form that Prometheus reads."""

import os
import re

from apps.recsys.serving.web.metrics import BUCKETS, OTHER, Metrics
from apps.recsys.serving.web.routes import ROUTES

LINE = re.compile(r'(# (HELP|TYPE) \w+ .+|\w+(\{(\w+="[^"]*",?)+\})? [0-9.e+]+)')


def numbers(page: bytes) -> dict[str, float]:
    """Numbers by what stands before them."""
    lines = page.decode().splitlines()
    assert all(LINE.fullmatch(line) for line in lines), lines
    return {name: float(number) for name, _, number in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_requests_are_counted_by_route_status_and_time() -> None:
    metrics = Metrics()
    place = next(number for number, route in enumerate(ROUTES) if route.path == "/users/{id}/recommend")
    for status, seconds in ((200, 0.002), (200, 0.02), (404, 0.0004), (503, 99.0)):
        metrics.count(place, status, seconds)
    metrics.count(OTHER, 404, 0.001)
    page = numbers(metrics.text({"recsys_connections": ("Open ones.", 3)}))
    route = 'method="GET",route="/users/{id}/recommend"'
    assert page[f'recsys_requests_total{{{route},status="2xx"}}'] == 2
    assert page[f'recsys_requests_total{{{route},status="5xx"}}'] == 1
    assert page['recsys_requests_total{method="",route="other",status="4xx"}'] == 1
    assert page[f'recsys_request_seconds_bucket{{{route},le="0.001"}}'] == 1
    assert page[f'recsys_request_seconds_bucket{{{route},le="{BUCKETS[-1]}"}}'] == 3
    assert page[f'recsys_request_seconds_bucket{{{route},le="+Inf"}}'] == 4
    assert page[f"recsys_request_seconds_count{{{route}}}"] == 4
    assert page["recsys_connections"] == 3


def test_workers_count_together() -> None:
    metrics = Metrics(workers=2)
    if (pid := os.fork()) == 0:
        metrics.worker = 1
        metrics.count(0, 200, 0.1)
        os._exit(0)
    os.waitpid(pid, 0)
    metrics.count(0, 200, 0.1)
    name = f'recsys_requests_total{{method="{ROUTES[0].method}",route="{ROUTES[0].path}",status="2xx"}}'
    assert numbers(metrics.text({}))[name] == 2
