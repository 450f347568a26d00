"""Commands that both applications have and that plan nothing: ``fetch`` and ``bench``."""

import argparse
import importlib
import sys
from typing import Any

from common.errors import UsageError


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
            place = datasets.find(entry.name) or "not at hand"
            sys.stdout.write(f"{entry.name}: {entry.title}\n  licence: {entry.licence}\n  {place}\n")
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


def add_bench(commands: Any, application: str) -> None:
    """``bench``: the application's benchmark suite through ``common.bench.harness``."""
    one = commands.add_parser("bench", help="measure, and compare with peers", description="Run the benchmark suite.")
    one.add_argument("--only", default="*", metavar="PATTERN", help="cases by name; several with commas")
    one.add_argument("--again", action="store_true", help="run cases that were done for this commit too")
    one.add_argument("--list", action="store_true", help="name the cases and stop")
    one.set_defaults(run=_bench, name=f"{application} bench", application=application)


def _bench(args: argparse.Namespace) -> int:
    suite = importlib.import_module(f"apps.{args.application}.bench.headline").suite()
    flags = [flag for flag, given in (("--again", args.again), ("--list", args.list)) if given]
    return int(suite.main(["--only", args.only, *flags]))
