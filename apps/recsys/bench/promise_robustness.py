"""What ``recsys`` keeps beside the grid: random commands, and results that kills do not change.

``make bench-promise ONLY='random-*' SECONDS=3600`` and ``ONLY='kills-*'``; the latter need real data sets in
``PEAKLINE_DATA``.
"""

import sys
from pathlib import Path

from apps.recsys.bench.headline import source
from apps.recsys.bench.promise import WORK, prepare
from common.bench.harness import Bound, Suite
from common.bench.random_commands import declare

TRAIN = (
    ("ials", "lastfm", "--model ials --factors 64 --set iterations=12"),
    ("bpr", "lastfm", "--model bpr --factors 32 --epochs 20 --threads 1"),
    ("embedding", "lastfm", "--model embedding --factors 32 --epochs 4"),
)
"""Name, data set and options of the trainings that are killed."""
NO_FAULTS = Bound("result.faults", at_most=0)


def suite() -> Suite:
    """Declare the cases."""
    made = Suite("promise")
    declare(made, "recsys", "apps.recsys.bench.random.commands")
    prepare(WORK)
    for name, data, options in TRAIN:
        out = WORK / f"kills-{name}"
        train = ["apps.recsys", "train", source(data, WORK), "-o", out, *options.split(), "-q"]
        _add(made, f"kills-{name}", out, train)
    lists = WORK / "kills-lists.parquet"
    _add(
        made,
        "kills-all-users",
        lists,
        ["apps.recsys", "recommend", WORK / "ials-ml-1m", "--all-users", "-o", lists, "-q"],
    )
    return made


def _add(made: Suite, name: str, out: Path, command: list[object]) -> None:
    made.case(name, ["-m", "common.bench.kill_chain", out, "--", *command], bounds=(NO_FAULTS,), exits=(0, 1))


if __name__ == "__main__":
    sys.exit(suite().main())
