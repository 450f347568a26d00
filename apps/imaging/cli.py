"""The parser of the command line ``imaging``. Heavy modules load when a command runs, never for ``--help``."""

import argparse

from apps.imaging.commands import bench, compress, ensemble, evaluate, export, infer, inspect, merge, train
from apps.imaging.commands.datasets import fingerprint
from common import __version__
from common.cli import fetch_bench, main
from common.cli.arguments import IntermixedParser


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    about = "3D medical image segmentation inside a stated ceiling."
    top = argparse.ArgumentParser(prog="imaging", description=about, epilog=main.EPILOG)
    top.add_argument("--version", action="version", version=f"peakline {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True, parser_class=IntermixedParser)
    fingerprint.add(commands)
    train.add(commands)
    ensemble.add(commands)
    infer.add(commands)
    merge.add(commands)
    compress.add(commands)
    export.add(commands)
    evaluate.add(commands)
    inspect.add(commands)
    fetch_bench.add_fetch(commands, "imaging")
    bench.add(commands)
    return top
