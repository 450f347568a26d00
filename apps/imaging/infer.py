"""``imaging infer``: studies in, label files out, through tiles and finished slabs."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging import components, intensity
from apps.imaging.crop import Content, Cropped, content, uncropped
from apps.imaging.dicomweb import Downloads
from apps.imaging.geometry import Frame, Taps, centred_grid, network_grid
from apps.imaging.labels import BackToFile, LabelMaker, LabelPlanes, row_depth
from apps.imaging.model import ImagingModel, Inference
from apps.imaging.outputs import Outputs, Wanted
from apps.imaging.spline import SplineReader, nearest_axis
from apps.imaging.streams import ResamplingReader, Window
from apps.imaging.studies import Study, StudyTable, open_volume, resume_key
from apps.imaging.volume import BLOCK_BYTES, PlaneReader, Shape, Volume, blocks, spacing
from common.cli import Session
from common.engines.engine import Array as Tiles
from common.engines.engine import Engine, Turns, answers
from common.errors import InputError
from common.memory import guard
from common.tiling.blend import FLOAT, Block, BoundedBlend, Spilled
from common.tiling.grid import TileGrid, importance

log = logging.getLogger("peakline")


@dataclass(frozen=True, slots=True)
class Case:
    """One volume on the network's grid: pure arithmetic on its header, shared by the price and the work."""

    volume: Volume
    frame: Frame
    grid: TileGrid
    """In file axes."""
    tile: Shape
    """Along the model's axes."""
    nnunet: bool = False
    """Whether boxes, tiles, weights and resampling are nnU-Net's."""
    nearest: int | None = None
    """The file's axis along which the image's resampling takes the nearest voxel."""
    nearest_back: int | None = None
    """The same on the way back: nnU-Net asks the grid that it comes from first."""
    limits: tuple[float, float] = (-np.inf, np.inf)
    """Least and largest value of the volume, where they are known."""
    steps: tuple[float, float, float] | None = None
    """The network's voxels over the file's, where the centres of the first ones coincide instead of their edges."""
    inference: Inference = field(default_factory=Inference)

    @classmethod
    def of(cls, volume: Volume, model: ImagingModel, *, tile: Shape, overlap: float) -> "Case":
        """Lay the model's grid and tiles over a volume."""
        frame = Frame.between(volume.affine, model.orientation)
        wanted, nnunet, steps = frame.to_file(model.spacing), model.convention == "nnunet", None
        if model.convention == "bundle":
            shape, steps = centred_grid(volume.shape, volume.affine, wanted)
        else:
            tolerance = {"tolerance": 0.0} if nnunet else {}
            shape = network_grid(volume.shape, volume.affine, wanted, **tolerance)
        grid = TileGrid(shape, frame.to_file(tile), overlap, frame.flips, nnunet)
        have = spacing(volume.affine)
        there, back = (nearest_axis(have, wanted), nearest_axis(wanted, have)) if nnunet else (None, None)
        return cls(volume, frame, grid, tile, nnunet, there, back, steps=steps, inference=model.inference)

    def within(self, found: Content, model: ImagingModel) -> "Case":
        """The case of the box that is not zero, as nnU-Net takes it."""
        box = Cropped(self.volume, found.low, found.high)
        return replace(Case.of(box, model, tile=self.tile, overlap=self.grid.overlap), limits=found.limits)

    @property
    def resampled(self) -> bool:
        """Whether the network's grid is not the file's."""
        return self.grid.shape != self.volume.shape or self.steps is not None

    @property
    def taps(self) -> tuple[Taps, ...]:
        """From the file's grid to the network's, along the file's axes; not for nnU-Net's, which takes splines."""
        pairs = list(zip(self.volume.shape, self.grid.shape, strict=True))
        if self.steps is None:
            return tuple(Taps.between(size, new) for size, new in pairs)
        return tuple(
            Taps.centred(size, new, step, flipped=flip)
            for (size, new), step, flip in zip(pairs, self.steps, self.frame.flips, strict=True)
        )

    @property
    def taps_back(self) -> tuple[Taps, ...]:
        """From the network's grid to the file's."""
        pairs = list(zip(self.grid.shape, self.volume.shape, strict=True))
        if self.steps is None:
            return tuple(
                Taps.nearest(size, new) if axis == self.nearest_back else Taps.between(size, new)
                for axis, (size, new) in enumerate(pairs)
            )
        nearest = self.inference.restored == "labels"
        return tuple(
            Taps.centred(size, new, 1 / step, flipped=flip, nearest=nearest)
            for (size, new), step, flip in zip(pairs, self.steps, self.frame.flips, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Job:
    """What all studies of one command share."""

    model: ImagingModel
    """With the labels that are written."""
    engine: Engine
    maker: LabelMaker
    batch: int
    spill: Spilled
    """What of the blend waits on disk, beside the outputs."""
    mirror: str
    """Axes over whose mirrorings the engine averages."""
    remove_small: float
    """Millilitres below which a connected part becomes background; 0: none."""
    wanted: Wanted
    precision: str
    session: Session
    table: StudyTable
    cases: Mapping[str, Case | InputError]

    def settings(self, case: Case) -> dict[str, Any]:
        """What changes the labels, besides the input."""
        return {
            "model": [self.model.network_sha256, self.model.weights_sha256],
            "labels": [label.value for label in self.model.labels],
            "intensity": [dict(operation) for operation in self.model.intensity],
            "tile": list(case.tile),
            "overlap": case.grid.overlap,
            "mirror": self.mirror,
            "spacing": list(self.model.spacing),
            "remove_small": self.remove_small,
            "inference": asdict(self.model.inference),
            "precision": self.precision,
        }


def finished_values(
    case: Case,
    engine: Engine,
    operations: Sequence[intensity.Operation],
    *,
    before: Sequence[intensity.Operation] = (),
    batch: int = 1,
    spill: Spilled = "memory",
    scratch: Path | None = None,
    tick: Callable[[int], Any] = lambda count: None,
) -> Iterator[Block]:
    """Finished blocks of the engine's blended output on the network's grid; ``tick`` is told how many tiles are done.

    ``before`` is done to voxels before they are resampled, ``operations`` after that. ``spill`` and ``scratch`` are the
    blend's.
    """
    grid, frame = case.grid, case.frame
    batches = [
        range(first, min(first + batch, row + grid.per_row))
        for row in range(0, len(grid), grid.per_row)
        for first in range(row, row + grid.per_row, batch)
    ]
    with (
        case.volume.open() as reader,
        BoundedBlend(
            grid.shape,
            grid.tile,
            grid.overlap,
            engine.out_channels,
            importance(grid.tile, "half" if case.nnunet else case.inference.importance),
            flips=grid.flips,
            even=grid.even,
            spill=spill,
            scratch=scratch,
        ) as blend,
    ):
        window = open_window(case, reader, operations, before)
        tiles = network_tiles(case, window, batches, batch, engine.in_channels)
        for chosen, outputs in zip(batches, answers(engine, tiles, ahead=batch > 1), strict=True):
            for index, output in zip(chosen, outputs, strict=True):
                yield from blend.add(index, frame.view(output))
            tick(len(chosen))


def open_window(
    case: Case,
    reader: PlaneReader,
    operations: Sequence[intensity.Operation],
    before: Sequence[intensity.Operation] = (),
) -> Window:
    """The volume on the network's grid, as the model's convention brings it there."""
    grid = case.grid
    if case.nnunet and case.resampled:
        reader = SplineReader(case.volume, reader, grid.shape, operations, nearest=case.nearest, limits=case.limits)
        operations = ()
    elif case.resampled:
        reader = _resampling(case, reader, before)
    else:
        operations = (*before, *operations)
    edge = case.inference.padding == "edge"
    return Window(case.volume, reader, grid, operations, ready=case.resampled, edge=edge)


def network_tiles(
    case: Case, window: Window, batches: Sequence[Sequence[int]], batch: int, channels: int
) -> Iterator[Tiles]:
    """The network's input, batch by batch (numbers of tiles), in arrays that are used by turns."""
    positions = list(case.grid)
    inputs = Turns((batch, channels, *case.tile))
    for chosen in batches:
        window.advance(positions[chosen[0]][2])
        tiles = inputs.next(len(chosen))
        for slot, index in enumerate(chosen):
            window.fill(positions[index], case.frame.view(tiles[slot, 0]))
        yield tiles


def label_planes(
    case: Case, channels: int, blocks: Iterator[Block], maker: LabelMaker
) -> Iterator[npt.NDArray[np.unsignedinteger]]:
    """Labels (x, y, k) on the file's own grid, in order."""
    shape = case.volume.shape
    if not case.resampled:
        planes = LabelPlanes(shape, row_depth(case.grid, shape), maker.dtype)
        for block in blocks:
            yield from planes.add(block, maker(block.values))
        return
    taps, restored = case.taps_back, case.inference.restored
    planes = LabelPlanes(shape, row_depth(case.grid, shape, taps[2]), maker.dtype)
    back = BackToFile(restored_channels(case, channels, maker.classes), case.grid.shape, shape, case.grid.tile[2], taps)
    for block in blocks:
        if restored == "labels":
            block = replace(block, values=maker(block.values)[None].astype(np.float32))
        elif restored != "logits":
            block = replace(block, values=maker.probabilities(block.values, restored))
        for piece in back(block):
            if restored == "labels":
                labels = piece.values[0].astype(maker.dtype)
            else:
                labels = (maker if restored == "logits" else maker.without_head())(piece.values)
            yield from planes.add(piece, labels)


def restored_channels(case: Case, channels: int, classes: int) -> int:
    """Values for each voxel that are brought back onto the file's grid; ``channels`` are the blend's."""
    return {"logits": channels, "labels": 1}.get(case.inference.restored, classes)


def resolved(case: Case, operations: Sequence[intensity.Operation]) -> tuple[Sequence[intensity.Operation], ...]:
    """What is done to voxels before and after resampling, with numbers instead of statistics."""
    before, after = intensity.split(operations)
    if intensity.RESAMPLE not in operations:
        return (), intensity.resolve(after, lambda: blocks(case.volume))
    early = intensity.resolve(before, lambda: blocks(case.volume))
    return early, intensity.resolve(after, lambda: _blocks_on_grid(case, early))


def _blocks_on_grid(case: Case, before: Sequence[intensity.Operation]) -> Iterator[Tiles]:
    """One pass over the volume on the network's grid, (k, y, x) float32."""
    if not case.resampled:
        yield from (intensity.apply(before, block) for block in blocks(case.volume))
        return
    x, y, z = case.grid.shape
    buffer = np.empty((min(z, pass_planes(case)), y, x), np.float32)
    with case.volume.open() as stored:
        reader = _resampling(case, stored, before)
        for start in range(0, z, len(buffer)):
            planes = buffer[: min(len(buffer), z - start)]
            reader.read(planes)
            yield planes


def _resampling(case: Case, reader: PlaneReader, before: Sequence[intensity.Operation]) -> ResamplingReader:
    """Zeros count where grids are MONAI's: its double precision sums hardly ever cancel."""
    keep = case.steps is not None
    return ResamplingReader(case.volume, reader, case.grid.shape, case.taps, before, keep_zeros=keep)


def pass_planes(case: Case) -> int:
    """Planes of the network's grid that a pass holds at a time."""
    x, y, _ = case.grid.shape
    return max(1, BLOCK_BYTES // (x * y * FLOAT))


def within_content(case: Case, model: ImagingModel) -> tuple[Case, Content | None]:
    """The case that is worked on: nnU-Net looks only at the box that is not zero."""
    if not case.nnunet:
        return case, None
    found = content(case.volume.shape, blocks(case.volume))
    return case.within(found, model), found


def segment(job: Job, study: Study, case: Case) -> tuple[str, ...]:
    """Segment one study; returns the names of its outputs."""
    session, volume = job.session, case.volume
    with session.phase("statistics"):
        inside, found = within_content(case, job.model)
        before, operations = resolved(inside, job.model.intensity)
    key = resume_key(volume, job.settings(case))
    outputs = Outputs(job.wanted, job.table.directory, study.study, volume, job.model, key, job.maker.dtype)
    if "dicom-seg" in job.wanted.types:
        with session.phase("template"):
            outputs.prepare()
    with (
        session.phase("infer"),
        session.progress(total=len(inside.grid), unit="tile", label=study.study) as bar,
        outputs,
    ):
        place: dict[str, Any] = {"spill": job.spill, "scratch": job.table.directory, "before": before}
        values = finished_values(inside, job.engine, operations, batch=job.batch, tick=bar.update, **place)
        planes = label_planes(inside, job.engine.out_channels, values, job.maker)
        if found is not None:
            planes = uncropped(planes, volume.shape, found.low, job.maker.dtype)
        if job.remove_small:
            least = components.least_voxels(job.remove_small, volume.affine)
            planes = components.without_small(planes, least, job.table.directory)
        for labels in planes:
            outputs.write(labels)
        outputs.save_statistics()
    if job.wanted.preview:
        with session.phase("preview"):
            outputs.draw()
    if job.wanted.stow:
        with session.phase("stow"):
            outputs.send()
    return tuple(outputs.names)


def run(job: Job) -> dict[str, Any]:
    """Work through the studies; each ends as done, skipped or failed, and the table says so at once.

    Raises
    ------
    InputError
        If a study failed by its input, after all were tried; ``job.session.results`` has the rest.
    """
    table, session = job.table, job.session
    unforeseen: Exception | None = None
    bad: InputError | None = None
    for index, study in enumerate(table.rows):
        try:
            _one(job, index, study)
        except InputError as error:
            bad = bad or error
            table.update(index, status="failed", reason=error.public)
            if len(table.rows) > 1:
                session.say(f"{study.study}: {error}")
        except Exception as error:
            unforeseen = unforeseen or error
            table.update(index, status="failed", reason=type(error).__name__)
            log.error("%s: %s", study.study, type(error).__name__, exc_info=log.isEnabledFor(logging.DEBUG))
            guard.release()
        session.results["studies"] = [row.public() for row in table.rows]
    if unforeseen is not None:
        raise unforeseen
    if bad is not None:
        failed = sum(row.status == "failed" for row in table.rows)
        raise bad if len(table.rows) == 1 else InputError(f"{failed} of {len(table.rows)} studies failed")
    return session.results


def _one(job: Job, index: int, study: Study) -> None:
    case = job.cases[study.study]
    if isinstance(case, InputError):
        raise case
    key = resume_key(case.volume, job.settings(case) | {"outputs": asdict(job.wanted)})
    if before := job.table.finished(study, key):
        job.session.say(f"{study.study}: done before, skipped")
        job.table.update(index, status="skipped", outputs=before.outputs, key=key)
        return
    job.table.update(index, status="done", outputs=segment(job, study, case), key=key)


def open_cases(
    studies: list[Study],
    model: ImagingModel,
    *,
    downloads: Downloads,
    repair: frozenset[str],
    wanted: Wanted,
    tile: Shape,
    overlap: float,
) -> dict[str, Case | InputError]:
    """Read every header; a study that cannot be used keeps its error, unless it is the only one."""
    cases: dict[str, Case | InputError] = {}
    for study in studies:
        try:
            path, series = downloads.path(study.input)
            volume = open_volume(path, series, repair)
            wanted.check(volume, path)
            cases[study.study] = Case.of(volume, model, tile=tile, overlap=overlap)
        except InputError as error:
            cases[study.study] = error
    errors = [case for case in cases.values() if isinstance(case, InputError)]
    if errors and len(errors) == len(cases):
        raise errors[0]
    return cases
