"""``python -m apps.recsys`` and the console script ``recsys``."""

import sys
from typing import NoReturn

from apps.recsys import cli
from common.cli.main import main as run


def main() -> NoReturn:
    """Run the command line."""
    sys.exit(run(cli.parser(), "apps.recsys"))


if __name__ == "__main__":
    main()
