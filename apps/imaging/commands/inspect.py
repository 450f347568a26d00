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
        from apps.imaging.models.variants import described

        verify(model, read_manifest(model))
        read = read_model(model)
        lines = inspect_lines(read) + ([f"measured    {described(read.measured)}"] if read.measured else [])
    else:
        from apps.imaging.importers.describe import foreign_lines

        foreign = foreign_lines(model) if model.is_dir() else None
        lines = [escaped(line) for line in foreign] if foreign is not None else list(_studies(args))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _studies(args: argparse.Namespace) -> Iterator[str]:
    """Lines for each study of an input, with its path where there are several; and what was left out.

    Of several, one that cannot be used is described by the reason.

    Raises
    ------
    BadInput
        If none can be described.
    """
    import tempfile

    from apps.imaging.dicom.defects import is_no_volume
    from apps.imaging.dicom.web import Downloads
    from apps.imaging.inference.discovery import find_studies
    from apps.imaging.inference.studies import LeftOut

    downloads = Downloads(Path(tempfile.gettempdir()), args.series)
    places, left_out = find_studies([args.path])
    described, refused = 0, None
    for place in places:
        try:
            lines = _lines(args, *downloads.path(place.input))
        except BadInput as error:
            reason = str(error).removeprefix(f"{place.input}: ")
            if is_no_volume(error):
                left_out.append(LeftOut(place.input, reason, error.public))
                continue
            refused = refused or error
            if len(places) > 1:
                yield from [f"input       {escaped(place.input)}", f"refused     {escaped(reason)}"]
            continue
        described += 1
        yield from [f"input       {escaped(place.input)}", *lines] if len(places) > 1 else lines
    if not described:
        raise refused or BadInput(f"{left_out[0].path}: {left_out[0].reason}", public=left_out[0].public)
    yield from map(str, left_out)


def _lines(args: argparse.Namespace, path: Path, series: str | None) -> list[str]:
    """Lines for one input; of a DICOM folder of several series, for each of them.

    Raises
    ------
    BadInput
        If it, or every series of it, cannot be used.
    """
    from apps.imaging.dicom.series import DicomVolume, each_series
    from apps.imaging.inference.discovery import open_volume
    from apps.imaging.volumes.archive import zip_of

    if series is not None or not (path.is_dir() or zip_of(path)):
        return open_volume(path, series, args.repair, args.volume).describe()
    found = list(each_series(path, args.repair, args.volume))
    volumes = [volume for _, volume in found if isinstance(volume, DicomVolume)]
    if not volumes or len(found) == 1:
        return open_volume(path, series, args.repair, args.volume).describe()
    lines = []
    for named, volume in found:
        lines.append(f"series      {named}")
        if isinstance(volume, DicomVolume):
            lines += volume.describe()
        else:
            lines.append(f"refused     {escaped(str(volume).removeprefix(f'{path}: '))}")
    return lines
