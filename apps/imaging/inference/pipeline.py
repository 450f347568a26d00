"""``imaging infer``: studies in, label files out, through tiles and finished slabs."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.dicom.web import Downloads
from apps.imaging.inference import small_components
from apps.imaging.inference.labeling import InverseResampler, LabelPlanes, LogitsToLabels, row_depth
from apps.imaging.inference.network_grid import (
    NetworkGrid,
    Operations,
    network_tiles,
    open_windows,
    resolved,
    restored_channels,
    same_grid,
    within_content,
)
from apps.imaging.inference.outputs import OutputRequest, Outputs
from apps.imaging.inference.studies import Study, StudyTable, further_channels, open_volume, resume_key
from apps.imaging.models.model_folder import ImagingModel
from apps.imaging.volumes.nonzero_crop import uncropped
from apps.imaging.volumes.volume import Shape
from common.cli.session import Session
from common.engines.base import Engine, prefetch
from common.errors import BadInput
from common.memory.process import guard
from common.tiling.blend import Block, BoundedBlend, Spilled
from common.tiling.grid import importance

log = logging.getLogger("peakline")


@dataclass(frozen=True, slots=True)
class Job:
    """What all studies of one command share."""

    model: ImagingModel
    """With the labels that are written."""
    engine: Engine
    maker: LogitsToLabels
    batch: int
    spill: Spilled
    """What of the blend waits on disk, beside the outputs."""
    mirror: str
    """Axes over whose mirrorings the engine averages."""
    remove_small: float
    """Millilitres below which a connected part becomes background; 0: none."""
    wanted: OutputRequest
    precision: str
    session: Session
    table: StudyTable
    cases: Mapping[str, NetworkGrid | BadInput]
    finished: Mapping[str, Study]
    """Studies on servers that were done before, and were not fetched again."""

    def settings(self, case: NetworkGrid) -> dict[str, Any]:
        """What changes the labels, besides the input."""
        return {
            **asked(self.model, self.precision, case.grid.overlap, self.mirror, self.remove_small),
            "tile": list(case.tile),
            "further": [each.volume.identity() for each in case.further],
        }


def asked(model: ImagingModel, precision: str, overlap: float, mirror: str, remove_small: float) -> dict[str, Any]:
    """What changes the labels and is known before the input is."""
    return {
        "model": [model.network_sha256, model.weights_sha256],
        "labels": [label.value for label in model.labels],
        "intensity": [[dict(operation) for operation in channel] for channel in model.intensities],
        "overlap": overlap,
        "mirror": mirror,
        "spacing": list(model.spacing),
        "remove_small": remove_small,
        "inference": asdict(model.inference),
        "precision": precision,
    }


def finished_values(
    case: NetworkGrid,
    engine: Engine,
    operations: Sequence[Operations],
    *,
    batch: int = 1,
    spill: Spilled = "memory",
    scratch: Path | None = None,
    tick: Callable[[int], Any] = lambda count: None,
) -> Iterator[Block]:
    """Finished blocks of the engine's blended output on the network's grid; ``tick`` is told how many tiles are done.

    ``operations`` are by channel; ``spill`` and ``scratch`` are the blend's.
    """
    grid, frame = case.grid, case.frame
    batches = [
        range(first, min(first + batch, row + grid.per_row))
        for row in range(0, len(grid), grid.per_row)
        for first in range(row, row + grid.per_row, batch)
    ]
    with (
        open_windows(case, operations) as windows,
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
        found = prefetch(engine, network_tiles(case, windows, batches, batch), ahead=batch > 1)
        for chosen in batches:
            outputs = next(found)
            for slot, index in enumerate(chosen):
                yield from blend.add(index, frame.view(outputs[slot]))
            del outputs  # before the next answer is made: not every engine has an array for it
            tick(len(chosen))


def label_planes(
    case: NetworkGrid, channels: int, blocks: Iterator[Block], maker: LogitsToLabels
) -> Iterator[npt.NDArray[np.unsignedinteger]]:
    """Labels (x, y, k) on the file's own grid, in order."""
    shape = case.volume.shape
    if not case.resampled:
        planes = LabelPlanes(shape, row_depth(case.grid, shape), maker.dtype)
        for block in blocks:
            yield from planes.add(block, maker(block.values))
            del block  # with the answer that it is a view of
        return
    taps, restored = case.taps_back, case.inference.restored
    planes = LabelPlanes(shape, row_depth(case.grid, shape, taps[2]), maker.dtype)
    back = InverseResampler(
        restored_channels(case, channels, maker.classes), case.grid.shape, shape, case.grid.tile[2], taps
    )
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
            del piece  # before the next one is made
        del block


def segment(job: Job, study: Study, case: NetworkGrid) -> tuple[str, ...]:
    """Segment one study; returns the names of its outputs."""
    session, volume = job.session, case.volume
    with session.phase("statistics"):
        inside, first = within_content(case, job.model)
        operations = resolved(inside, job.model)
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
        place: dict[str, Any] = {"spill": job.spill, "scratch": job.table.directory}
        values = finished_values(inside, job.engine, operations, batch=job.batch, tick=bar.update, **place)
        planes = label_planes(inside, job.engine.out_channels, values, job.maker)
        if first is not None:
            planes = uncropped(planes, volume.shape, first, job.maker.dtype)
        if job.remove_small:
            least = small_components.least_voxels(job.remove_small, volume.affine)
            planes = small_components.without_small(planes, least, job.table.directory)
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
    BadInput
        If a study failed by its input, after all were tried; ``job.session.results`` has the rest.
    """
    table, session = job.table, job.session
    unforeseen: Exception | None = None
    bad: BadInput | None = None
    for index, study in enumerate(table.rows):
        try:
            _one(job, index, study)
        except BadInput as error:
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
        raise bad if len(table.rows) == 1 else BadInput(f"{failed} of {len(table.rows)} studies failed")
    return session.results


def _one(job: Job, index: int, study: Study) -> None:
    before = job.finished.get(study.study)
    if before is None:
        case = job.cases[study.study]
        if isinstance(case, BadInput):
            raise case
        key = resume_key(case.volume, job.settings(case) | {"outputs": asdict(job.wanted)})
        before = job.table.finished(study, key)
    if before is not None:
        job.session.say(f"{study.study}: done before, skipped")
        job.table.update(index, status="skipped", outputs=before.outputs, key=before.key)
        return
    job.table.update(index, status="done", outputs=segment(job, study, case), key=key)


def open_cases(
    studies: list[Study],
    model: ImagingModel,
    *,
    downloads: Downloads,
    repair: frozenset[str],
    wanted: OutputRequest,
    tile: Shape,
    overlap: float,
) -> dict[str, NetworkGrid | BadInput]:
    """Read every header; a study that cannot be used keeps its error, unless it is the only one."""
    cases: dict[str, NetworkGrid | BadInput] = {}
    for study in studies:
        try:
            path, series = downloads.path(study.input)
            volume = open_volume(path, series, repair)
            wanted.check(volume, path)
            further = [open_volume(other) for other in further_channels(path, len(model.channels))]
            same_grid(volume, further)
            case = NetworkGrid.of(volume, model, tile=tile, overlap=overlap, further=further)
            case.check(path)
            cases[study.study] = case
        except BadInput as error:
            cases[study.study] = error
    errors = [case for case in cases.values() if isinstance(case, BadInput)]
    if errors and len(errors) == len(cases):
        raise errors[0]
    return cases
