"""``python -m apps.imaging`` and the console script ``imaging``."""

import sys

from apps.imaging.cli import parser
from common.cli import main as cli


def main() -> int:
    """Run the command line."""
    return cli.main(parser(), "apps.imaging")


if __name__ == "__main__":
    sys.exit(main())
