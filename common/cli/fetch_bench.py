"""Commands that both applications have and that plan nothing themselves: ``fetch`` and ``bench``."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UsageError

if TYPE_CHECKING:
    from common.cli.quick_bench import Step


def add_fetch(commands: Any, application: str) -> None:
    """``fetch NAME``: a public data set of the catalogue into the per-user cache."""
    about = "Download a public data set from its publisher, check it, and keep it in the per-user cache."
    one = commands.add_parser("fetch", help="download a public data set", description=about)
    one.add_argument("dataset", nargs="?", metavar="NAME", help="without a name: list what there is")
    one.set_defaults(run=_fetch, name=f"{application} fetch", application=application)


def _fetch(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from common import datasets

    entries = {name: e for name, e in datasets.catalog().items() if e.application == args.application}
    if args.dataset is None:
        for entry in entries.values():
            location = datasets.find(entry.name) or "not on this machine"
            sys.stdout.write(f"{entry.name}: {entry.title}\n  licence: {entry.licence}\n  {location}\n")
        return 0
    if args.dataset not in entries:
        raise UsageError(f"fetch {args.dataset}: known are {', '.join(entries)}")
    with tqdm(unit="B", unit_scale=True, desc=args.dataset, disable=not sys.stderr.isatty(), leave=False) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        folder = datasets.fetch(entries[args.dataset], datasets.cache_directory(), progress=show)
    sys.stdout.write(f"{folder}\n")
    return 0


Steps = Callable[[argparse.Namespace, Path], "Sequence[Step]"]
"""Makes the quick benchmark's steps of the options and an empty folder for data and outputs."""


def add_bench(commands: Any, application: str, steps: Steps) -> argparse.ArgumentParser:
    """``bench``: time and memory on the user's data, or the suites of the checkout.

    Returns
    -------
    argparse.ArgumentParser
        To which the application adds the options that ``steps`` reads.
    """
    about = (
        "Measure time and memory of a few commands on your data, or on a generated sample, predicted and measured;"
        " --full runs the suite that compares with other programs."
    )
    one: argparse.ArgumentParser = commands.add_parser("bench", help="measure on this machine", description=about)
    which = one.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="this program alone, on your data (the default)")
    which.add_argument("--full", action="store_true", help="the suite with its peers; needs a checkout of the source")
    one.add_argument("--list", action="store_true", help="name the commands, or with --full the cases, and stop")
    one.add_argument("--memory", default="auto", metavar="SIZE", help="ceiling of each command (default auto)")
    one.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    one.add_argument("--repeats", type=int, default=1, metavar="N", help="runs of each command (default 1)")
    one.add_argument("--json", action="store_true", help="the figures as JSON")
    full = one.add_argument_group("with --full")
    full.add_argument("--only", metavar="PATTERN", help="cases by name; several with commas")
    full.add_argument("--again", action="store_true", help="run cases that were done for this commit too")
    one.set_defaults(run=_bench, name=f"{application} bench", application=application, steps=steps)
    return one


def _bench(args: argparse.Namespace) -> int:
    if args.full:
        return _full(args)
    if args.only is not None or args.again:
        raise UsageError("--only and --again are for --full")
    if args.repeats < 1 or (args.threads is not None and args.threads < 1):
        raise UsageError("--repeats and --threads take numbers from 1 on")
    import tempfile

    from common.cli import quick_bench  # loads what every command would hold otherwise

    with tempfile.TemporaryDirectory(prefix="peakline-bench-") as folder:
        steps = args.steps(args, Path(folder))
        options = ["--memory", args.memory, *(["--threads", str(args.threads)] if args.threads else [])]
        if args.list:
            for step in steps:
                sys.stdout.write(" ".join([args.application, step.name, *map(str, step.arguments), *options]) + "\n")
            return 0
        return quick_bench.run(args.application, steps, options=options, repeats=args.repeats, as_json=args.json)


def _full(args: argparse.Namespace) -> int:
    try:
        suites = importlib.import_module(f"apps.{args.application}.bench.headline")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith((f"apps.{args.application}.bench", "common.bench")):
            raise
        raise UsageError(
            "--full: the suites that compare with other programs are in the source's checkout, not in the installed"
            " package; --quick measures this program on your data"
        ) from None
    flags = [flag for flag, chosen in (("--again", args.again), ("--list", args.list)) if chosen]
    return int(suites.suite().main(["--only", args.only or "*", *flags]))
