"""``imaging compress --int8``: quantise a model's network to 8-bit integers, with ranges found on real volumes."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from apps.imaging.compression.calibration import gathered, read_grids, read_source
from apps.imaging.compression.options import CompressOptions
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.models.model_folder import APPLICATION, CARD, ImagingModel, read_manifest, read_model
from common import model_folder
from common.cli.session import Session
from common.engines.base import INT8, NETWORK, PLAIN_INT8, WEIGHTS
from common.engines.quantization import quantise, quantise_weights
from common.files import scratch_directory

QUANTISE = "quantise"
"""The phase after the reading."""


@dataclass(frozen=True, slots=True)
class CompressRequest:
    """The request of ``imaging compress`` to 8-bit integers: its options, the model, and the volumes' headers."""

    options: CompressOptions
    model: ImagingModel
    grids: tuple[NetworkGrid, ...]

    @classmethod
    def of(cls, options: CompressOptions, directory: Path) -> "CompressRequest":
        """Read the model and the headers of as many volumes as there are tiles.

        Parameters
        ----------
        directory
            The model folder, converted if need be.

        Raises
        ------
        BadInput
            A model or volumes that cannot be used.
        UsageError
            If the output is the model itself, a file, or a folder with a model of another application.
        """
        model = read_source(options, directory)
        return cls(options, model, read_grids(options, model) if options.int8 else ())


def run(request: CompressRequest, session: Session) -> dict[str, object]:
    """Gather tiles on disk, quantise, write the model folder; what was there before stays until it is complete.

    Returns
    -------
    dict
        The record's ``results``: ``bytes_before`` and ``bytes_after`` of the network, and the number of ``tiles``.
    """
    model, out = request.model, request.options.output
    out.mkdir(parents=True, exist_ok=True)
    with (
        scratch_directory(out.parent, out.name) as draft,
        gathered(request.options, model, request.grids, session) as (tiles, count),
    ):
        with session.phase(QUANTISE):
            if request.options.int8_weights:
                quantise_weights(model.directory, draft)
            else:
                quantise(model.directory, draft, tiles, count=count, tile=model.patch)
        return {**_write(request, draft, count), "metrics": {}}


def _write(request: CompressRequest, draft: Path, count: int) -> dict[str, int]:
    """Write the folder: all that the model had, and its network in int8."""
    source, out = request.model.directory, request.options.output
    manifest = read_manifest(source)
    model_folder.unseal(out)
    for name in (WEIGHTS, NETWORK):
        shutil.copyfile(source / name, out / name)
    how = f"{count} tiles of {len(request.grids)} volumes" if count else "weights alone"
    note = f"\nAlso in 8-bit integers (NNCF, {how}).\n"
    (out / CARD).write_text((source / CARD).read_text("utf-8") + note, encoding="utf-8")
    (out / PLAIN_INT8[0]).unlink(missing_ok=True)
    for name in INT8:
        (draft / name).replace(out / name)
    own = {"format", "application", "kind", "made_by", "files", "measured"}
    fields = {key: value for key, value in manifest.items() if key not in own}
    files = [WEIGHTS, NETWORK, CARD, *INT8]
    model_folder.seal(out, application=APPLICATION, kind=request.model.kind, files=files, fields=fields)
    assert read_model(out).int8
    sizes = {name: (out / name).stat().st_size for name in files}
    return {"bytes_before": sizes[NETWORK], "bytes_after": sum(sizes[name] for name in INT8), "tiles": count}
