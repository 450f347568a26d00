"""The suite ``recsys_scale``: time and memory against ``implicit``, and data larger than memory.

It is part of ``make bench-recsys`` and needs the real data sets in ``PEAKLINE_DATA``. Fractal and grown data are
synthetic.
"""

import subprocess
import sys
from pathlib import Path

from apps.recsys.bench.headline import source
from common.bench.harness import Bound, Suite
from common.memory.process.budget import parse_size

WORK = Path("bench/work/recsys")
GROWN = WORK / "grown-60m.parquet"
"""A million users and 1.4 million items."""
FRACTAL, EVENTS, SIDE = WORK / "fractal-60m.parquet", 60_000_000, 12
AS_FAST, AS_SMALL = Bound("seconds", at_most=1.05), Bound("peak", at_most=0.6)
TWICE = Bound("seconds", at_most=2.0)
SCRATCH = Bound("result.scratch_mib", at_most=64)


def _train(interactions: Path, out: Path, size: str, *options: object) -> list[object]:
    ends = ["--memory", size, "-q", "--json"]
    return ["-m", "apps.recsys", "train", interactions, "-o", out, "--model", "ials", *options, *ends]


def within_memory(suite: Suite) -> None:
    """Declare cases on the same CSV with the same settings and no split."""
    for data, factors in (("gowalla", 64), ("gowalla", 256), ("ml-1m", 64)):
        ours = f"within-{data}-{factors}"
        theirs, size, path = f"{ours}-implicit", "300MiB", source(data, WORK)
        training = _train(path, WORK / ours, size, "--factors", factors)
        suite.case(ours, training, ceiling=parse_size(size), repeats=2, group=ours, fresh=WORK / ours)
        peer = ["-m", "apps.recsys.bench.peer_fit", path, "--factors", factors]
        suite.case(theirs, peer, repeats=2, group=ours)
        suite.ratio(f"{ours}: time against implicit", ours, theirs, AS_FAST)
        suite.ratio(f"{ours}: peak against implicit", ours, theirs, AS_SMALL)


def beyond_memory(suite: Suite) -> None:
    """Declare cases on sixty million events: ``recsys train`` under 1 GiB, ``implicit`` without a limit."""
    size, out, factors = "1GiB", WORK / "fractal", WORK / "fractal.npy"
    group = "fractal"
    if not FRACTAL.is_file():
        made = ["apps.recsys.bench.synthetic_scale_up", FRACTAL, "--side", SIDE, "--events", EVENTS]
        subprocess.run([sys.executable, "-m", *map(str, made)], check=True)
    suite.case("fractal", _train(FRACTAL, out, size), ceiling=parse_size(size), group=group, fresh=out)
    suite.case("fractal-implicit", ["-m", "apps.recsys.bench.peer_fit", FRACTAL, "--out", factors], group=group)
    suite.ratio("fractal: time against implicit", "fractal", "fractal-implicit", TWICE)
    judge = ["-m", "apps.recsys.bench.objective", out, factors, "--every", 200]
    suite.case("fractal-objective", judge, group=group, bounds=(Bound("result.ratio", 0.999, 1.001),))


def lists(suite: Suite) -> None:
    """Declare cases of batch recommendation and evaluation with 139,738 real items and with a million grown ones."""
    size, model = "400MiB", WORK / "epinions-lists"
    group = "epinions"
    training = _train(source("epinions", WORK), model, size, "--split", "random")
    suite.case("epinions-train", training, ceiling=parse_size(size), group=group)
    evaluate = ["-m", "apps.recsys", "evaluate", model, "--memory", "140MiB", "-q", "--json"]
    suite.case("epinions-evaluate", evaluate, ceiling=parse_size("140MiB"), group=group)
    exact = Bound("result.recall", at_least=1.0)
    suite.case("epinions-lists", ["-m", "apps.recsys.bench.lists", model], group=group, bounds=(SCRATCH, exact))

    base, grown = WORK / "gowalla-lists", WORK / "million"
    group = "million"
    suite.case("million-base", _train(source("gowalla", WORK), base, size, "--set", "weight=binary"), group=group)
    judge = ["-m", "apps.recsys.bench.lists", base, "--items", 1_000_000, "--out", grown]
    bounds = (SCRATCH, Bound("result.recall", at_least=0.995), Bound("result.user_ms", at_most=1.5))
    suite.case("million-lists", judge, group=group, bounds=bounds)


def large_filter(suite: Suite) -> None:
    """Declare cases of the linear filter on sixty million events: ``--only 'linear-[!6]*'`` leaves them out.

    The data are made by the first of them.
    """
    group, model, size = "linear-60m", WORK / "linear-60m", parse_size("1GiB")
    measure, ready = ["-m", "apps.recsys.bench.quality.large_filter", GROWN], Bound("result.fit", at_most=60)
    given = ["--factors", 0, "--set", "form=filter", "--set", "degree_power=0.4"]
    spectral = [
        "--factors",
        32,
        "--set",
        "form=filter",
        "--set",
        "degree_power=0.4",
        "--set",
        "saturation=3",
        "--memory",
        "2GiB",
    ]
    grow = ["-m", "apps.recsys.bench.synthetic_scale_up", GROWN, "--side", 34, "--events", EVENTS]
    suite.case("linear-60m-data", grow, group=group)
    suite.case("linear-60m-spectrum", [*measure, WORK / "linear-60m-32", *spectral], ceiling=2 * size, group=group)
    suite.case("linear-60m-given", [*measure, model, *given], ceiling=size, group=group, bounds=(ready,))
    suite.case("linear-60m-chosen", [*measure, model], ceiling=size, group=group, bounds=(ready,))
    suite.case("linear-60m-lists", [*measure, model, "--lists"], ceiling=size, group=group)
    bounds = (
        Bound("result.median_ms", at_most=10),
        Bound("result.p99_ms", at_most=10),
        Bound("result.kept", at_least=0.98),
    )
    suite.case("linear-60m-one-user", ["-m", "apps.recsys.bench.quality.one_user", model], group=group, bounds=bounds)


def suite() -> Suite:
    """Make the data and declare the cases."""
    made = Suite("recsys_scale")
    large_filter(made)
    within_memory(made)
    beyond_memory(made)
    lists(made)
    return made


if __name__ == "__main__":
    sys.exit(suite().main())
