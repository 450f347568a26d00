"""Run outcome cases, small programs that do not ship with the project, from the folder in ``PEAKLINE_CASES``.

``python -m tests.cases [--only PATTERN] [--quarter K] [--bin FOLDER]``; ``make cases`` calls it. Each folder there has
a ``run.py`` with ``--list``, ``--only`` and ``--bin``. A quarter is every fourth case, beginning with case K.
"""

import argparse
import fnmatch
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

QUARTERS = 4
LEFT_OUT = ("serve-ipv6",)
"""Cases that are not run unless asked for: this one takes the 1 of ``http://[::1]:PORT`` for the port."""


def ids(runner: Path) -> list[str]:
    """Return the ids of a runner's cases, in its order."""
    listed = subprocess.run([sys.executable, runner, "--list"], capture_output=True, text=True, check=True)
    return re.findall(r"^\| `([^`]+)` \|", listed.stdout, re.MULTILINE)


def chosen(names: Sequence[str], pattern: str | None, quarter: int | None) -> list[str]:
    """Return the cases to run: those that match ``pattern``, or else a quarter of all but ``LEFT_OUT``, or these."""
    if pattern is not None:
        return [name for name in names if _matches(name, pattern.split(","))]
    usual = [name for name in names if name not in LEFT_OUT]
    return usual if quarter is None else usual[quarter % QUARTERS :: QUARTERS]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns 1 if a case fails, or if there is none."""
    parser = argparse.ArgumentParser(prog="cases", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", metavar="PATTERN", help="cases by name; several with commas (default: all)")
    parser.add_argument("--quarter", type=int, metavar="K", help="every fourth case, beginning with case K")
    parser.add_argument("--bin", type=Path, default=Path(sys.executable).parent, help="where the commands are")
    args = parser.parse_args(argv)
    folder = Path(os.environ.get("PEAKLINE_CASES") or "/nowhere")
    failed, ran = False, 0
    for runner in sorted(folder.glob("*/run.py")):
        names = chosen(ids(runner), args.only, args.quarter)
        ran += len(names)
        if names:
            command = [sys.executable, runner, "--bin", args.bin, "--only", ",".join(names)]
            failed |= subprocess.run(command, check=False).returncode != 0
    if not ran:
        sys.stderr.write(f"no case {args.only or ''} in the folder PEAKLINE_CASES ({folder})\n")
    return int(failed or not ran)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
