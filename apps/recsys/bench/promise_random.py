"""Random commands of ``recsys`` as a part of the promise: ``make bench-promise ONLY='random-*' SECONDS=3600``."""

import sys

from common.bench.harness import Suite
from common.bench.random_commands import declare


def suite() -> Suite:
    """Declare the cases."""
    made = Suite("promise")
    declare(made, "recsys", "apps.recsys.bench.random.commands")
    return made


if __name__ == "__main__":
    sys.exit(suite().main())
