"""What ``recsys`` keeps beside the grid: random commands, and results that kills do not change.

``make bench-promise ONLY='random-*' SECONDS=3600`` and ``ONLY='kills-*'``; the latter need real data sets in
``PEAKLINE_DATA``.
"""

import sys

from apps.recsys.bench.headline import source
from apps.recsys.bench.promise import WORK, prepare
from common.bench import kill_chain, random_commands
from common.bench.harness import Suite

TRAIN = (
    ("ials", "lastfm", "--model ials --factors 64 --set iterations=12"),
    ("bpr", "lastfm", "--model bpr --factors 32 --epochs 20 --threads 1"),
    ("embedding", "lastfm", "--model embedding --factors 32 --epochs 4"),
)
"""Name, data set and options of the trainings that are killed."""


def suite() -> Suite:
    """Declare the cases."""
    made = Suite("promise")
    random_commands.declare(made, "recsys", "apps.recsys.bench.random.commands")
    prepare(WORK)
    for name, data, options in TRAIN:
        out = WORK / f"kills-{name}"
        train = ["apps.recsys", "train", source(data, WORK), "-o", out, *options.split(), "-q"]
        kill_chain.declare(made, f"kills-{name}", out, train)
    lists = WORK / "kills-lists.parquet"
    all_users = ["apps.recsys", "recommend", WORK / "ials-ml-1m", "--all-users", "-o", lists, "-q"]
    kill_chain.declare(made, "kills-all-users", lists, all_users)
    return made


if __name__ == "__main__":
    sys.exit(suite().main())
