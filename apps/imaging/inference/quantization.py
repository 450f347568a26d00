"""``imaging compress --int8``: quantise a model's network to 8-bit integers, with ranges found on real volumes."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.imaging.inference.discovery import find_studies, open_volume
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.inference.options import CompressOptions
from apps.imaging.inference.reading import network_tiles, open_windows, resolved, within_content
from apps.imaging.models.model_folder import APPLICATION, CARD, ImagingModel, read_manifest, read_model
from common import model_folder
from common.cli.session import Session
from common.engines.base import INT8, NETWORK, WEIGHTS, Array
from common.engines.quantization import quantise
from common.errors import BadInput, UsageError
from common.files import scratch_directory

TILES = 32
"""Tiles on which ranges are found, of all volumes together (NNCF's default is 300 pictures, far smaller ones)."""
OVERLAP = 0.0
CALIBRATE, QUANTISE = "calibrate", "quantise"
"""Phases."""


@dataclass(frozen=True, slots=True)
class CompressRequest:
    """The request of ``imaging compress``: its options, the model, and the volumes with their headers."""

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
        model = read_model(directory)
        if options.output.resolve() == model.directory:
            raise UsageError(f"-o {options.output}: is the model itself")
        model_folder.check_output(options.output, APPLICATION)
        if model.inputs != 1:
            channels = model.inputs
            raise BadInput(f"{options.model}: a model of {channels} channels; one image a study is read")
        images = options.calibration / "imagesTr"
        studies, _ = find_studies([images if images.is_dir() else options.calibration])
        every = -(-len(studies) // options.tiles)
        grids = []
        for path in (Path(study.input) for study in studies[::every]):
            grids.append(NetworkGrid.of(open_volume(path), model, tile=model.patch, overlap=OVERLAP))
            grids[-1].check(path)
        return cls(options, model, tuple(grids))


def choose_tiles(grids: Sequence[NetworkGrid], tiles: int) -> list[list[int]]:
    """Numbers of the tiles on which ranges are found, by volume.

    About as many of each volume, evenly over it; ``tiles`` of all together.
    """
    each = -(-tiles // len(grids))
    counts = [min(each, len(grid.tiles)) for grid in grids]
    return [
        sorted({round(number) for number in np.linspace(0, len(grid.tiles) - 1, count)})
        for grid, count in zip(grids, counts, strict=True)
    ]


def run(request: CompressRequest, session: Session) -> dict[str, object]:
    """Gather tiles on disk, quantise, write the model folder; what was there before stays until it is complete.

    Returns
    -------
    dict
        The record's ``results``: ``bytes_before`` and ``bytes_after`` of the network, and the number of ``tiles``.
    """
    model, out = request.model, request.options.output
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out) as stored, scratch_directory(out.parent, out.name) as draft:
        shape = (1, len(model.channels), *model.patch)
        with (
            session.phase(CALIBRATE),
            session.progress(total=len(request.grids), unit="volume", label="compress") as bar,
        ):
            count = 0
            for grid, numbers in zip(request.grids, choose_tiles(request.grids, request.options.tiles), strict=True):
                for tile in _tiles(grid, model, numbers, out):
                    stored.write(tile.data)
                    count += 1
                bar.update(1)

        def tiles() -> Iterator[Array]:
            stored.seek(0)
            for _ in range(count):
                yield np.frombuffer(stored.read(4 * int(np.prod(shape))), np.float32).reshape(shape)

        with session.phase(QUANTISE):
            quantise(model.directory, draft, tiles, count=count, tile=model.patch)
        return {**_write(request, draft, count), "metrics": {}}


def _tiles(grid: NetworkGrid, model: ImagingModel, numbers: Sequence[int], scratch: Path) -> Iterator[Array]:
    """Tiles as the network sees them, one by one; each is valid until the next."""
    with within_content(grid, model, scratch) as (inside, _):
        kept = [number for number in numbers if number < len(inside.tiles)]
        with open_windows(inside, resolved(inside, model)) as windows:
            yield from network_tiles(inside, windows, [[number] for number in kept], 1)


def _write(request: CompressRequest, draft: Path, count: int) -> dict[str, int]:
    """Write the folder: all that the model had, and its network in int8."""
    source, out = request.model.directory, request.options.output
    manifest = read_manifest(source)
    model_folder.unseal(out)
    for name in (WEIGHTS, NETWORK):
        shutil.copyfile(source / name, out / name)
    note = f"\nAlso in 8-bit integers (NNCF, {count} tiles of {len(request.grids)} volumes).\n"
    (out / CARD).write_text((source / CARD).read_text("utf-8") + note, encoding="utf-8")
    for name in INT8:
        (draft / name).replace(out / name)
    own = {"format", "application", "kind", "made_by", "files"}
    fields = {key: value for key, value in manifest.items() if key not in own}
    files = [WEIGHTS, NETWORK, CARD, *INT8]
    model_folder.seal(out, application=APPLICATION, kind=request.model.kind, files=files, fields=fields)
    assert read_model(out).int8
    sizes = {name: (out / name).stat().st_size for name in files}
    return {"bytes_before": sizes[NETWORK], "bytes_after": sum(sizes[name] for name in INT8), "tiles": count}
