"""Run a command with its leanest plan even where the planner would refuse the ceiling.

``python -m common.bench.forced.failures apps.recsys train ...``. Only the memory limits and the meter then decide
whether the command fits. The bisection in ``common.bench.promise`` uses this.
"""

import importlib
import os
import sys

from common.cli import main as cli
from common.memory.plan import planner

_APPLICATION = "PEAKLINE_FORCED"
"""Names the application for the child: the supervisor starts this module again with the command's arguments alone."""


def main(argv: list[str]) -> int:
    """Run ``APPLICATION ARGUMENTS...``, the arguments as the application's own command line takes them."""
    application = os.environ.get(_APPLICATION)
    if application is None:
        application, *argv = argv
        os.environ[_APPLICATION] = application
    planner.plan = planner.leanest
    return cli.main(importlib.import_module(f"{application}.cli").parser(), "common.bench.forced.failures", argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
