"""The suite ``serve``: the service on MovieLens-1M and on a million items, asked from other processes.

It needs MovieLens-1M and Gowalla in ``PEAKLINE_DATA``, schemathesis (dependency group ``fuzz``) and faiss (``bench``).
The million items are those of Gowalla, repeated with noise; they take 0.7 GB of disk.
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
LARGE = WORK / "serve-million"
QUALITY = {
    "folded": (Bound("result.ratio_10", at_least=0.995), Bound("result.ratio_100", at_least=0.995)),
    "rebuilt": (Bound("result.worst", at_most=1e-6),),
}
MILLION = (
    Bound("result.recall", at_least=0.99),
    Bound("result.times_as_fast", at_least=8),
    Bound("result.p99_over_median", at_most=3),
    Bound("result.free_cache_peak_mib", at_most=128),
    Bound("result.own_cache_peak_mib", at_most=128),
)


def suite() -> Suite:
    """Declare the cases."""
    made = Suite("serve")
    ends = ["--model", "ials", "-q", "--json", "--memory"]
    train = ["-m", "apps.recsys", "train", source("ml-1m", WORK), "-o", MODEL, *ends, "300MiB"]
    made.case("ml-1m-model", train, ceiling=None, group="model", bounds=(), fresh=MODEL)
    for name, (seconds, bounds) in BOUNDS.items():
        measure = ["-m", "apps.recsys.bench.serve.measure", name, MODEL, seconds]
        made.case(f"ml-1m-{name}", measure, ceiling=None, group=name, bounds=bounds)
    for name, wanted in QUALITY.items():
        measure = ["-m", "apps.recsys.bench.serve.quality", name, source("ml-1m", WORK)]
        made.case(f"ml-1m-{name}", measure, ceiling=None, group=name, bounds=wanted)
    real = WORK / "gowalla-128"
    train = ["-m", "apps.recsys", "train", source("gowalla", WORK), "-o", real, *ends, "1GiB"]
    made.case("gowalla-model", [*train, "--factors", 128], ceiling=None, group="large", bounds=(), fresh=real)
    measure = ["-m", "apps.recsys.bench.serve.large", real, LARGE]
    made.case("million-lists", measure, ceiling=None, group="large", bounds=MILLION)
    measure = ["-m", "apps.recsys.bench.serve.measure", "workers", LARGE, 5]
    made.case(
        "million-workers", measure, ceiling=None, group="large", bounds=(Bound("result.four_over_one", at_most=1.3),)
    )
    return made


if __name__ == "__main__":
    sys.exit(suite().main())
