"""Run a command with the leanest plan whatever it needs: only the walls and the meter then tell whether it fits.

``python -m common.bench.forced_failures apps.recsys train ...``: the planner would refuse these ceilings. For the
bisection in ``common.bench.promise`` only.
"""

import importlib
import os
import sys

from common.cli import main as cli
from common.memory.plan import planner

_APPLICATION = "PEAKLINE_FORCED"
"""The supervisor starts this module again for its child, with the command's arguments alone."""


def main(argv: list[str]) -> int:
    """``APPLICATION ARGUMENTS...``, as the application's own command line takes them."""
    application = os.environ.get(_APPLICATION)
    if application is None:
        application, *argv = argv
        os.environ[_APPLICATION] = application
    planner.plan = planner.leanest
    return cli.main(importlib.import_module(f"{application}.cli").parser(), "common.bench.forced_failures", argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
