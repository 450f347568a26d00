"""The suite ``recsys_search``: the gain of twenty trials over the defaults, under the same ceiling.

It is part of ``make bench-recsys`` and needs MovieLens-1M in ``PEAKLINE_DATA``. Settings are chosen on validation items
of the training data; the split's held-out items are only evaluated on.
"""

import sys
from pathlib import Path

from apps.recsys.bench.headline import source
from common.bench.harness import Bound, Suite
from common.memory.process.budget import parse_size

WORK = Path("bench/work/recsys")
SIZE = "160MiB"
TRIALS = 20
GAIN = Bound("result.metrics.ndcg@10", at_least=1.0)
HIDDEN_GAIN = Bound("result.tuning.gain", at_least=1.0)


def suite() -> Suite:
    """Declare the cases."""
    made = Suite("recsys_search")
    for kind in ("ials", "bpr"):
        ends = ["--memory", SIZE, "--split", "random", "-q", "--json"]
        names = f"ml-1m-{kind}", f"ml-1m-{kind}-tuned"
        for name, options, bounds in ((names[0], [], ()), (names[1], ["--tune", TRIALS], (HIDDEN_GAIN,))):
            out = WORK / f"search-{name}"
            train = ["-m", "apps.recsys", "train", source("ml-1m", WORK), "-o", out, "--model", kind, *options, *ends]
            made.case(name, train, ceiling=parse_size(SIZE), group=kind, bounds=bounds, fresh=out)
        made.ratio(f"{kind}: tuned over defaults, held out", names[1], names[0], GAIN)
    return made


if __name__ == "__main__":
    sys.exit(suite().main())
