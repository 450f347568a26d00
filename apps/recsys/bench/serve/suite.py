"""The suite ``serve``: the service on MovieLens-1M, asked from other processes on the same machine.

It needs MovieLens-1M in ``PEAKLINE_DATA``, and schemathesis (dependency group ``fuzz``).
"""

import sys
from pathlib import Path

from apps.recsys.bench.headline import source
from common.bench.harness import Bound, Suite

WORK = Path("bench/work/recsys")
MODEL = WORK / "serve-ml-1m"
BOUNDS = {
    "speed": (
        4,
        (
            Bound("result.ratio", at_least=0.3),
            Bound("result.lists_per_second", at_least=1500),
            Bound("result.median_ms", at_most=6),
            Bound("result.health_p99_ms", at_most=5),
            Bound("result.failed", at_most=0),
        ),
    ),
    "changes": (3, (Bound("result.failed", at_most=0), Bound("result.peak_ratio", at_most=1.15))),
    "feedback": (5, (Bound("result.median_ms", at_most=10), Bound("result.wrong", at_most=0))),
    "malformed": (0, (Bound("result.errors", at_most=0), Bound("result.grown_kib", at_most=1024))),
    "clients": (
        1800,
        (
            Bound("result.server_errors", at_most=0),
            Bound("result.peak_share", at_most=1),
            Bound("result.grown", at_most=1.02),
        ),
    ),
    "workers": (3, (Bound("result.four_over_one", at_most=1.7),)),
    "schema": (0, (Bound("result.exit_code", at_most=0),)),
}
"""Seconds of each measurement, and its bounds. Workers share the model, of which there is little here."""


def suite() -> Suite:
    """Declare the cases."""
    made = Suite("serve")
    train = ["-m", "apps.recsys", "train", source("ml-1m", WORK), "-o", MODEL, "-q", "--json", "--memory", "300MiB"]
    made.case("ml-1m-model", train, ceiling=None, group="model", bounds=(), fresh=MODEL)
    for name, (seconds, bounds) in BOUNDS.items():
        measure = ["-m", "apps.recsys.bench.serve.measure", name, MODEL, seconds]
        made.case(f"ml-1m-{name}", measure, ceiling=None, group=name, bounds=bounds)
    return made


if __name__ == "__main__":
    sys.exit(suite().main())
