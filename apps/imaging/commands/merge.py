"""``imaging merge``: the outputs of all parts of ``infer --part`` in one folder, with one table."""

import argparse
import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Declare the subcommand."""
    description = "Join the parts that infer --part K/N made; refuse if a part or a study is missing or double."
    one = commands.add_parser("merge", help="join the parts of infer --part", description=description)
    parts_help = "output folder of infer --part, in which the folders of parts are; or these folders"
    one.add_argument("parts", nargs="+", type=Path, metavar="OUT", help=parts_help)
    output_help = "folder of all files and of studies.csv (default: the first OUT)"
    one.add_argument("-o", "--output", type=Path, metavar="FOLDER", help=output_help)
    one.set_defaults(run=_run, name="imaging merge")


def _run(args: argparse.Namespace) -> int:
    from apps.imaging.inference.running.parts import FILE, merge, summary
    from common.errors import UsageError

    target = args.output or args.parts[0]
    if (target / FILE).is_file():
        raise UsageError(f"-o FOLDER is needed: {target} is a part itself")
    if target.is_file():
        raise UsageError(f"-o {target}: is a file; expected a folder")
    rows = merge(args.parts, target)
    sys.stdout.write(summary(rows, target) + "\n")
    return 0
