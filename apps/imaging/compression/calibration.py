"""Tiles of real volumes, as the network sees them, on which ranges and importance are found."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np

from apps.imaging.compression.options import CompressOptions
from apps.imaging.inference.discovery import find_studies, open_volume
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.inference.reading import network_tiles, open_windows, resolved, within_content
from apps.imaging.models.model_folder import APPLICATION, ImagingModel, read_model
from common import model_folder
from common.cli.session import Session
from common.engines.base import Array
from common.errors import BadInput, UsageError

OVERLAP = 0.0
CALIBRATE = "calibrate"
"""The phase in which they are read."""
Tiles = Callable[[], Iterator[Array]]
"""Yields the tiles, each of shape (1, channels, x, y, z) and its own; can be called again."""


def read_source(options: CompressOptions, directory: Path) -> ImagingModel:
    """Read the model that is compressed.

    Parameters
    ----------
    directory
        The model folder, converted if need be.

    Raises
    ------
    BadInput
        A model that cannot be read.
    UsageError
        If the output is the model itself, a file, or a folder with a model of another application.
    """
    model = read_model(directory)
    if options.output.resolve() == model.directory:
        raise UsageError(f"-o {options.output}: is the model itself")
    model_folder.check_output(options.output, APPLICATION)
    return model


def read_grids(options: CompressOptions, model: ImagingModel) -> tuple[NetworkGrid, ...]:
    """Read the headers of as many volumes as there are tiles.

    Raises
    ------
    BadInput
        Volumes that cannot be used, or a model of several channels.
    """
    assert options.calibration is not None
    if model.inputs != 1:
        raise BadInput(f"{options.model}: a model of {model.inputs} channels; one image a study is read")
    images = options.calibration / "imagesTr"
    studies, _ = find_studies([images if images.is_dir() else options.calibration])
    every = -(-len(studies) // options.tiles)
    grids = []
    for path in (Path(study.input) for study in studies[::every]):
        grids.append(NetworkGrid.of(open_volume(path), model, tile=model.patch, overlap=OVERLAP))
        grids[-1].check(path)
    return tuple(grids)


def choose_tiles(grids: Sequence[NetworkGrid], tiles: int) -> list[list[int]]:
    """Numbers of the tiles that are read, by volume.

    About as many of each volume, evenly over it; ``tiles`` of all together.
    """
    each = -(-tiles // len(grids))
    counts = [min(each, len(grid.tiles)) for grid in grids]
    return [
        sorted({round(number) for number in np.linspace(0, len(grid.tiles) - 1, count)})
        for grid, count in zip(grids, counts, strict=True)
    ]


@contextmanager
def gathered(
    options: CompressOptions, model: ImagingModel, grids: Sequence[NetworkGrid], session: Session
) -> Iterator[tuple[Tiles, int]]:
    """Read the tiles to disk; yields what reads them again, and their number.

    Raises
    ------
    BadInput
        No tile has two values.
    """
    if not grids:
        yield lambda: iter(()), 0
        return
    shape = (1, len(model.channels), *model.patch)
    with tempfile.TemporaryFile(dir=options.output) as stored:
        count, varied = 0, False
        with session.phase(CALIBRATE), session.progress(total=len(grids), unit="volume", label="compress") as bar:
            for grid, numbers in zip(grids, choose_tiles(grids, options.tiles), strict=True):
                for tile in _tiles(grid, model, numbers, options.output):
                    stored.write(tile.data)
                    count, varied = count + 1, varied or bool(tile.min() < tile.max())
                bar.update(1)
        if not varied:
            raise BadInput(
                f"--calibration {options.calibration}: each of the {count} tiles that were read has one value alone"
                " (values that are not finite count as zero), so that nothing can be measured on them",
                public="calibration images of one value",
            )

        def tiles() -> Iterator[Array]:
            stored.seek(0)
            for _ in range(count):
                yield np.fromfile(stored, np.float32, prod(shape)).reshape(shape)

        yield tiles, count


def _tiles(grid: NetworkGrid, model: ImagingModel, numbers: Sequence[int], scratch: Path) -> Iterator[Array]:
    """Tiles as the network sees them, one by one; each is valid until the next."""
    with within_content(grid, model, scratch) as (inside, _):
        kept = [number for number in numbers if number < len(inside.tiles)]
        with open_windows(inside, resolved(inside, model)) as windows:
            yield from network_tiles(inside, windows, [[number] for number in kept], 1)
