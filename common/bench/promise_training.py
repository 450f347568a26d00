"""Check gradient accumulation on small networks, for all losses: ``make bench-promise ONLY='training-*'``."""

import json
import sys

from common.bench.harness import Bound, Suite

EXACT = (
    Bound("result.float64", at_most=1e-12),
    Bound("result.float32", at_most=1e-4),
    Bound("result.over_yardstick", at_most=2.0),
)


def suite() -> Suite:
    """Declare the cases."""
    made = Suite("promise")
    made.case("training-exactness", ("-m", "common.bench.promise_training", "exactness"), bounds=EXACT)
    return made


def exactness() -> None:
    """Print the errors as JSON."""
    from common.bench.exactness import PROBLEMS, report

    sys.stdout.write(json.dumps(report(PROBLEMS)) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["exactness"]:
        exactness()
    else:
        sys.exit(suite().main())
