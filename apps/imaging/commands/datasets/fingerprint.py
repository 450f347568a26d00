"""``imaging fingerprint``: its options, and which functions plan and run it."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.planning import baselines
from common.cli import main
from common.cli.session import CommandSession
from common.memory.process.budget import MemoryBudget

if TYPE_CHECKING:
    from apps.imaging.planning.fingerprint import FingerprintWorkload
    from apps.imaging.training.proposal.options import FingerprintOptions

DESCRIPTION = """Read a labelled data set once (spacings, shapes, intensities, class sizes), and write what was found
together with a proposal of grid, patches, network and normalisation, for imaging train --recipe."""
NETWORKS = ("dynunet", "plainconvunet", "residualencoderunet")


def add(commands: Any) -> None:
    """Declare the subcommand."""
    one = commands.add_parser("fingerprint", help="propose how to train on a data set", description=DESCRIPTION)
    one.add_argument("dataset", type=Path, metavar="DATASET_DIR", help="folder with imagesTr, labelsTr, dataset.json")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="recipe to write (JSON)")
    one.add_argument("--network", choices=NETWORKS, default=NETWORKS[0], help=f"default {NETWORKS[0]}")
    one.add_argument("--skip-bad", action="store_true", help="leave out cases that cannot be used instead of stopping")
    main.add_common_options(one)
    command = main.Command("imaging fingerprint", _options, _workload, lambda options: baselines.FINGERPRINT, _run)
    one.set_defaults(command=command)


def _options(args: argparse.Namespace) -> "FingerprintOptions":
    from apps.imaging.training.proposal.options import FingerprintOptions

    return FingerprintOptions(
        dataset=args.dataset,
        output=args.output,
        network=args.network,
        skip_bad=args.skip_bad,
        threads=args.threads,
        quiet=args.quiet,
    )


def _workload(options: "FingerprintOptions", budget: MemoryBudget) -> "FingerprintWorkload":
    from apps.imaging.planning.fingerprint import FingerprintWorkload
    from apps.imaging.training.proposal.fingerprint import FingerprintRequest

    def warn(message: str) -> None:
        if not options.quiet:
            sys.stderr.write(message + "\n")

    return FingerprintWorkload(FingerprintRequest.of(options, warn))


def _run(session: "CommandSession[FingerprintOptions, FingerprintWorkload]") -> Mapping[str, Any]:
    from apps.imaging.training.proposal.fingerprint import run

    return run(session.workload.request, session)
