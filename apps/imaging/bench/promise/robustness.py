"""What ``imaging`` keeps beside the grid: random commands, and results that kills do not change.

``make bench-promise ONLY='random-*' SECONDS=3600`` and ``ONLY='kills-*'``.
"""

import sys
from pathlib import Path

from apps.imaging.bench.robustness.random_studies import write_training_set
from common.bench import kill_chain, random_commands
from common.bench.harness import Bound, Suite

WORK = Path("bench/work/promise-imaging")
NOTHING_LOST = tuple(Bound(f"result.{name}", at_most=0) for name in ("lost", "repeated", "partial", "left_over"))


def suite() -> Suite:
    """Declare the cases."""
    made = Suite("promise")
    random_commands.declare(made, "imaging", "apps.imaging.bench.robustness.random_commands")
    made.case("kills-infer", ["-m", "apps.imaging.bench.robustness.kills", WORK / "kills"], bounds=NOTHING_LOST)
    data, out = WORK / "kills-data", WORK / "kills-model"
    if not data.is_dir():
        write_training_set(data, cases=6, side=24, classes=3)
    train = ["apps.imaging", "train", data, "-o", out, "--steps", 60, "--patch", 16, "--fold", "0/3", "-q"]
    kill_chain.declare(made, "kills-train", out, train)
    return made


if __name__ == "__main__":
    sys.exit(suite().main())
