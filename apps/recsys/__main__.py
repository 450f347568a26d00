"""``python -m apps.recsys`` and the console script ``recsys``."""

import sys

from common.cli.interrupts import quiet
from common.cli.operating_system import require_linux


def main() -> int:
    """Run the command line."""
    with quiet():
        require_linux("recsys")
        from apps.recsys.cli import parser
        from common.cli import main as cli

        return cli.main(parser(), "apps.recsys")


if __name__ == "__main__":
    sys.exit(main())
