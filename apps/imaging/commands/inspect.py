"""``imaging inspect``: describe a study or a model, without any identifier."""

import argparse
import sys
from pathlib import Path
from typing import Any

from apps.imaging.commands.arguments import REPAIR_HELP, SERIES_HELP, repairs, source


def add(commands: Any) -> None:
    """Declare the subcommand."""
    one = commands.add_parser(
        "inspect", help="describe a study or a model", description="Describe an input or a model, without identifiers."
    )
    one.add_argument("path", type=source, metavar="INPUT|MODEL")
    one.add_argument("--series", metavar="N|UID", help=SERIES_HELP)
    one.add_argument("--repair", type=repairs, default=frozenset(), metavar="WHAT", help=REPAIR_HELP)
    one.set_defaults(run=_run, name="imaging inspect")


def _run(args: argparse.Namespace) -> int:
    from common.model_folder import MANIFEST, model_path, verify

    model = model_path(str(args.path))
    if (model / MANIFEST).is_file():
        from apps.imaging.models.model_folder import inspect_lines, read_manifest, read_model

        verify(model, read_manifest(model))
        lines = inspect_lines(read_model(model))
    else:
        import tempfile

        from apps.imaging.dicom.web import Downloads
        from apps.imaging.inference.studies import open_volume

        downloads = Downloads(Path(tempfile.gettempdir()), args.series)
        lines = open_volume(*downloads.path(str(args.path)), args.repair).describe()
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
