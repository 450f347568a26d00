"""``imaging inspect``: describe a study or a model, without any identifier."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apps.imaging.commands.arguments import REPAIR_HELP, SERIES_HELP, VOLUME_HELP, repairs, source
from common.cli.main import positive
from common.errors import BadInput
from common.terminal import escaped


def add(commands: Any) -> None:
    """Declare the subcommand."""
    one = commands.add_parser(
        "inspect", help="describe a study or a model", description="Describe an input or a model, without identifiers."
    )
    one.add_argument("path", type=source, metavar="INPUT|MODEL")
    one.add_argument("--series", metavar="N|UID", help=SERIES_HELP)
    one.add_argument("--volume", type=positive, metavar="K", help=VOLUME_HELP)
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
        lines = list(_studies(args))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _studies(args: argparse.Namespace) -> Iterator[str]:
    """Lines for each study of an input, with its path where there are several; and what was left out.

    Raises
    ------
    BadInput
        If none can be described, or one of several not.
    """
    import tempfile

    from apps.imaging.dicom.web import Downloads
    from apps.imaging.inference.discovery import LeftOut, find_studies, open_volume
    from apps.imaging.inference.studies import is_no_volume

    downloads = Downloads(Path(tempfile.gettempdir()), args.series)
    places, left_out = find_studies([args.path])
    described = 0
    for place in places:
        try:
            lines = open_volume(*downloads.path(place.input), args.repair, args.volume).describe()
        except BadInput as error:
            if len(places) == 1 or not is_no_volume(error):
                raise
            left_out.append(LeftOut(place.input, str(error).removeprefix(f"{place.input}: "), error.public))
            continue
        described += 1
        yield from [f"input       {escaped(place.input)}", *lines] if len(places) > 1 else lines
    if not described:
        raise BadInput(f"{left_out[0].path}: {left_out[0].reason}", public=left_out[0].public)
    yield from map(str, left_out)
