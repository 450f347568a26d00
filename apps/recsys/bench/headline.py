"""The headline figures of ``recsys``: quality and time against ``implicit``, predicted against measured peaks.

``make bench-headline``; it needs the real data sets in ``PEAKLINE_DATA``.
"""

import gzip
import sys
from pathlib import Path

from common import datasets
from common.bench.harness import Bound, Suite
from common.memory.process.budget import parse_size

WORK = Path("bench/work/recsys")
PREDICTIONS = (
    ("lastfm", "64", "200MiB", "--split user-holdout"),
    ("lastfm", "256", "400MiB", "--split user-holdout --set iterations=3"),
    ("ml-1m", "64", "300MiB", "--split user-holdout"),
    ("ml-1m", "128", "200MiB", "--split leave-last --set iterations=3"),
    ("gowalla", "64", "1GiB", "--split user-holdout --set iterations=3"),
    ("gowalla", "256", "400MiB", "--split user-holdout --set iterations=1"),
)
"""Data set, factors, ceiling and options of each ``train``; an ``evaluate`` under the same ceiling follows it."""
NEVER_UNDER = Bound("predicted_over_measured", 1.0, 1.15)
ABOVE_BASELINE = Bound("above_baseline", 1.0, 1.25)
AS_GOOD = Bound("result.metrics.ndcg@100", 0.99, 1.01)
AS_FAST = Bound("seconds", at_most=1.3)


def source(name: str, scratch: Path) -> Path:
    """Return a real data set's interactions as a file that ``recsys train`` reads, converting it below ``scratch``."""
    base = datasets.find(name)
    if base is None:
        raise SystemExit(f"data set {name} not found: set PEAKLINE_DATA")
    if lists := {"gowalla": "train_lightgcn.txt.gz", "epinions": "train.txt"}.get(name):
        return _pairs(base / lists, scratch / f"{name}.csv")
    return base / {"ml-1m": "ratings.csv.gz", "lastfm": "plays.csv"}[name]


def _pairs(lists: Path, out: Path) -> Path:
    """Convert lines ``user item item ...`` to rows ``user,item``."""
    if out.is_file():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(lists, "rt") if lists.suffix == ".gz" else lists.open() as stream, out.open("w") as rows:
        rows.write("user,item\n")
        for line in stream:
            user, *items = line.split()
            rows.writelines(f"{user},{item}\n" for item in items)
    return out


def suite() -> Suite:
    """Declare the cases."""
    headline = Suite("headline")
    ratings = source("ml-1m", WORK)
    kind = ["-o", WORK / "ml-1m", "--model", "ials"]
    ours = ["-m", "apps.recsys", "train", ratings, *kind, "--split", "user-holdout", "-q", "--json"]
    repeats, group = 3, "recsys-ml-1m"
    ceiling = parse_size("400MiB")
    bounds = (NEVER_UNDER, ABOVE_BASELINE)
    limited = [*ours, "--memory", "400MiB"]
    headline.case("recsys-train-ml-1m", limited, ceiling=ceiling, repeats=repeats, group=group, bounds=bounds)
    peer = ["-m", "apps.recsys.bench.peer_implicit", ratings]
    headline.case("implicit-ml-1m", peer, repeats=repeats, group=group)
    headline.ratio("recsys train: NDCG@100 against implicit", "recsys-train-ml-1m", "implicit-ml-1m", AS_GOOD)
    headline.ratio("recsys train: time against implicit", "recsys-train-ml-1m", "implicit-ml-1m", AS_FAST)
    for name, factors, size, options in PREDICTIONS:
        label, model = f"{name}-{factors}", WORK / f"{name}-{factors}"
        common = ["--memory", size, "-q", "--json"]
        train = [
            "train",
            source(name, WORK),
            "-o",
            model,
            "--model",
            "ials",
            "--factors",
            factors,
            *options.split(),
            *common,
        ]
        for command, arguments in (("train", train), ("evaluate", ["evaluate", model, *common])):
            headline.case(
                f"recsys-{command}-{label}",
                ["-m", "apps.recsys", *arguments],
                ceiling=parse_size(size),
                group=f"recsys-{label}",
                bounds=bounds,
            )
    return headline


if __name__ == "__main__":
    sys.exit(suite().main())
