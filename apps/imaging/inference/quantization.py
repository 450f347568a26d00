"""``imaging compress --int8``: a model folder with its network in 8-bit integers too, ranges found on real volumes."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.inference.network_grid import NetworkGrid, network_tiles, open_windows, resolved, within_content
from apps.imaging.models.model_folder import APPLICATION, CARD, ImagingModel, read_manifest, read_model
from common import model_folder
from common.cli.session import Session
from common.engines.base import INT8, NETWORK, WEIGHTS, Array
from common.engines.quantization import quantise
from common.files import scratch_directory

TILES = 32
"""Tiles that ranges are found on, of all volumes together (NNCF's own default is 300 pictures, far smaller ones)."""
OVERLAP = 0.0
CALIBRATE, QUANTISE = "calibrate", "quantise"


@dataclass(frozen=True, slots=True)
class Job:
    """What one command does."""

    model: ImagingModel
    cases: tuple[NetworkGrid, ...]
    out: Path
    tiles: int = TILES

    @property
    def chosen(self) -> list[list[int]]:
        """Numbers of the tiles of each case, evenly over its volume, and about as many of each."""
        each = -(-self.tiles // len(self.cases))
        counts = [min(each, len(case.grid)) for case in self.cases]
        return [
            sorted({round(place) for place in np.linspace(0, len(case.grid) - 1, count)})
            for case, count in zip(self.cases, counts, strict=True)
        ]


def run(job: Job, session: Session) -> dict[str, Any]:
    """Gather tiles on disk, quantise, write the folder; what was there before stays until it is complete."""
    job.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=job.out) as stored, scratch_directory(job.out.parent, job.out.name) as draft:
        shape = (1, len(job.model.channels), *job.model.patch)
        with (
            session.phase(CALIBRATE),
            session.progress(total=len(job.cases), unit="volume", label="compress") as bar,
        ):
            count = 0
            for case, numbers in zip(job.cases, job.chosen, strict=True):
                for tile in _tiles(case, job.model, numbers):
                    stored.write(tile.data)
                    count += 1
                bar.update(1)

        def tiles() -> Iterator[Array]:
            stored.seek(0)
            for _ in range(count):
                yield np.frombuffer(stored.read(4 * int(np.prod(shape))), np.float32).reshape(shape)

        with session.phase(QUANTISE):
            quantise(job.model.directory, draft, tiles, count=count, tile=job.model.patch)
        return {**_write(job, draft, count), "metrics": {}}


def _tiles(case: NetworkGrid, model: ImagingModel, numbers: Sequence[int]) -> Iterator[Array]:
    """Tiles as the network sees them, one by one; each is valid until the next."""
    inside, _ = within_content(case, model)
    kept = [number for number in numbers if number < len(inside.grid)]
    with open_windows(inside, resolved(inside, model)) as windows:
        yield from network_tiles(inside, windows, [[number] for number in kept], 1)


def _write(job: Job, draft: Path, count: int) -> dict[str, int]:
    """The folder: all that the model had, and its network in int8."""
    source, out = job.model.directory, job.out
    manifest = read_manifest(source)
    model_folder.unseal(out)
    for name in (WEIGHTS, NETWORK):
        shutil.copyfile(source / name, out / name)
    note = f"\nAlso in 8-bit integers (NNCF, {count} tiles of {len(job.cases)} volumes).\n"
    (out / CARD).write_text((source / CARD).read_text("utf-8") + note, encoding="utf-8")
    for name in INT8:
        (draft / name).replace(out / name)
    own = {"format", "application", "kind", "made_by", "files"}
    fields = {key: value for key, value in manifest.items() if key not in own}
    files = [WEIGHTS, NETWORK, CARD, *INT8]
    model_folder.seal(out, application=APPLICATION, kind=job.model.kind, files=files, fields=fields)
    assert read_model(out).int8
    sizes = {name: (out / name).stat().st_size for name in files}
    return {"bytes_before": sizes[NETWORK], "bytes_after": sum(sizes[name] for name in INT8), "tiles": count}
