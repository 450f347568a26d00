"""``python -m common.memory.report RUN.json [REPORT.html]``: render a record again."""

import sys

from common.memory.report.page import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
