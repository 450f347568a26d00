"""``python -m apps.imaging`` and the console script ``imaging``."""

import sys

from common.cli.interrupts import quiet
from common.cli.operating_system import require_linux


def main() -> int:
    """Run the command line."""
    with quiet():
        require_linux("imaging")
        from apps.imaging.cli import parser
        from common.cli import main as cli

        return cli.main(parser(), "apps.imaging")


if __name__ == "__main__":
    sys.exit(main())
