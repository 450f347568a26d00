"""Run ``imaging infer``: images in, label files out, tile by tile and finished block by block."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.dicom.defects import Defect, Outcome
from apps.imaging.dicom.series import DicomVolume
from apps.imaging.inference.components.filters import largest_only, least_voxels, without_small
from apps.imaging.inference.labeling import (
    Array,
    InverseResampler,
    LabelPlanes,
    Labels,
    LogitsToLabels,
    row_depth,
)
from apps.imaging.inference.network_grid import NetworkGrid, restored_channels
from apps.imaging.inference.outputs import Outputs, whole_or_nothing
from apps.imaging.inference.phases import INFER, OPEN, PREVIEW, STATISTICS, STOW, TEMPLATE
from apps.imaging.inference.reading import Operations, network_tiles, open_windows, resolved, within_content
from apps.imaging.inference.request import InferRequest
from apps.imaging.inference.studies import STARTED, Study, StudyTable, output_stem
from apps.imaging.models.model_folder import TORCH_NETWORK
from apps.imaging.volumes.nifti import NiftiVolume
from apps.imaging.volumes.nonzero_crop import uncropped
from apps.imaging.volumes.volume import Shape, Volume
from common.cli.session import Session
from common.engines.base import Engine, prefetch, read_head
from common.engines.mirroring import MirrorEngine
from common.engines.registry import open_engine
from common.errors import BadInput
from common.memory.process import glibc, guard
from common.model_folder import shipped_note
from common.tiling.blend import Block, BoundedBlend, Spilled
from common.tiling.grid import TileGrid, importance

log = logging.getLogger("peakline")

SHOWN_LEFT_OUT = 20
"""Most lines about what a search left out."""


@dataclass(frozen=True, slots=True)
class OpenNetwork:
    """The network made ready for tiles, and what makes labels of its values."""

    engine: Engine
    to_labels: LogitsToLabels

    @classmethod
    def of(cls, request: InferRequest, session: Session) -> "OpenNetwork":
        """Load the network as the plan has it."""
        choice, plan = request.model, session.plan
        model, device = choice.model, session.device
        if note := shipped_note(model.directory):
            session.say(note)
        if request.options.engine == "auto" and choice.engine != "openvino" and device is None:
            session.say(f"imaging infer: OpenVINO is not installed, using {choice.engine}")
        with session.phase(OPEN), session.reserving():  # compiled code and scratch that is hardly touched
            engine = open_engine(
                model.directory,
                name=choice.engine,
                precision=choice.precision,
                tile=choice.tile,
                batch=plan["batch"],
                threads=session.threads,
                output=plan["space"],
                head=model.head,
                builder=TORCH_NETWORK,
                device=device.name if device and choice.engine == "torch" else "cpu",
                heap=plan["allocator"] == "heap",
            )
        if choice.mirror:
            engine = MirrorEngine(engine, ["xyz".index(axis) for axis in choice.mirror], batch=plan["batch"])
        head = read_head(model.directory, model.head) if model.head and plan["space"] == "features" else None
        kept = [label.value for label in request.outputs.labels]
        rule = model.inference
        to_labels = LogitsToLabels(
            model.written,
            head,
            kept,
            decision=rule.decision,
            order=rule.order,
            threshold=rule.threshold,
            inclusive=model.convention == "bundle",
        )
        return cls(engine, to_labels)


def run(request: InferRequest, session: Session) -> dict[str, Any]:
    """Work through the studies; each ends as done, skipped or failed, and the table says so at once.

    Returns
    -------
    dict
        The record's ``results``: ``{"studies": [...]}``.

    Raises
    ------
    BadInput
        If a study failed by its input, after all were tried; ``session.results`` has the others.
    """
    network = OpenNetwork.of(request, session)
    table = StudyTable.open(request.options.output, request.inputs.studies)
    left_out = request.inputs.left_out
    for one in left_out[:SHOWN_LEFT_OUT]:
        session.say(str(one))
    if len(left_out) > SHOWN_LEFT_OUT:
        session.say(f"left out: {len(left_out) - SHOWN_LEFT_OUT} more")
    if left_out:
        session.results["left_out"] = [one.public for one in left_out]
    unforeseen: Exception | None = None
    bad: BadInput | None = None
    for index, study in enumerate(table.rows):
        try:
            _finish_study(request, session, network, table, index)
        except BadInput as error:
            bad = bad or error
            table.update(index, status="failed", reason=error.public, outputs=())
            if len(table.rows) > 1:
                session.say(f"{study.study}: {error}")
        except Exception as error:
            unforeseen = unforeseen or error
            table.update(index, status="failed", reason=type(error).__name__, outputs=())
            log.error("%s: %s", study.study, type(error).__name__, exc_info=log.isEnabledFor(logging.DEBUG))
            guard.release()
        session.results["studies"] = [row.public() for row in table.rows]
    if unforeseen is not None:
        raise unforeseen
    if bad is not None:
        failed = sum(row.status == "failed" for row in table.rows)
        raise bad if len(table.rows) == 1 else BadInput(f"{failed} of {len(table.rows)} studies failed")
    return session.results


def _finish_study(request: InferRequest, session: Session, network: OpenNetwork, table: StudyTable, index: int) -> None:
    """Segment a study, unless an earlier run with the same request has."""
    study = table.rows[index]
    earlier = request.inputs.finished.get(study.study)
    if earlier is None:
        grid = request.inputs.grids[study.study]
        if isinstance(grid, BadInput):
            raise grid
        image, *further = [channel.volume.identity() for channel in grid.channels]
        key = request.digest(image, further=further)
        earlier = table.finished(study, key, anywhere=isinstance(grid.volume, DicomVolume))
        if earlier is None:
            uids = request.digest(image, outputs=False, further=further)
            stem = output_stem(study, grid.volume, uids)
            names = request.outputs.names(stem)
            table.claim(study, names)
            for note in _notes(grid.volume):
                session.say(f"{study.study}: {note}")
            table.update(index, status=STARTED, outputs=names, key=key)
            with whole_or_nothing(table.directory, names):
                _segment(request, session, network, table.directory / stem, study, grid, uids)
            table.update(index, status="done")
            return
    session.say(f"{study.study}: done before, skipped")
    table.update(index, status="skipped", outputs=earlier.outputs, key=earlier.key)


def _notes(volume: Volume) -> Iterator[str]:
    """Lines about an image for the person at the terminal: repairs, parts left out, choices."""
    if isinstance(volume, DicomVolume):
        for finding in volume.findings:
            if finding.outcome is Outcome.REPAIR or finding.defect is Defect.SEVERAL_VOLUMES:
                yield str(finding)
    elif isinstance(volume, NiftiVolume):
        yield from (f"header: {note}" for note in volume.notes)


def _segment(
    request: InferRequest,
    session: Session,
    network: OpenNetwork,
    stem: Path,
    study: Study,
    grid: NetworkGrid,
    key: str,
) -> None:
    """Segment one study into files whose paths begin with ``stem``. DICOM's UIDs are derived from ``key``."""
    model, volume, engine, dtype = request.model.model, grid.volume, network.engine, network.to_labels.dtype
    glibc.trim()  # what the study before left free is 3.7 MiB in the heap
    scratch = request.inputs.scratch
    outputs = Outputs(request.outputs, stem.parent, stem.name, volume, model, key, dtype)
    with ExitStack() as stack:
        with session.phase(STATISTICS):
            inside, first = stack.enter_context(within_content(grid, model, scratch))
            operations = resolved(inside, model)
        if "dicom-seg" in request.outputs.types:
            with session.phase(TEMPLATE):
                outputs.prepare()
        stack.enter_context(session.phase(INFER))
        bar = stack.enter_context(session.progress(total=len(inside.tiles), unit="tile", label=study.study))
        stack.enter_context(outputs)
        blocks = finished_values(
            inside,
            engine,
            operations,
            batch=session.plan["batch"],
            spill=session.plan["spill"],
            scratch=scratch,
            tick=bar.update,
        )
        planes: Iterator[Labels] = label_planes(inside, engine.out_channels, blocks, network.to_labels, scratch)
        if first is not None:
            planes = uncropped(planes, volume.shape, first, dtype)
        if request.options.remove_small:
            planes = without_small(planes, least_voxels(request.options.remove_small, volume.affine), scratch)
        for labels in planes:
            outputs.write(labels)
        outputs.save_statistics()
    if request.outputs.preview:
        with session.phase(PREVIEW):
            outputs.draw()
    if request.outputs.stow:
        with session.phase(STOW):
            outputs.send()


def finished_values(
    grid: NetworkGrid,
    engine: Engine,
    operations: Sequence[Operations],
    *,
    batch: int = 1,
    spill: Spilled = "memory",
    scratch: Path | None = None,
    tick: Callable[[int], Any] = lambda count: None,
) -> Iterator[Block]:
    """Finished blocks of the engine's blended output on the network's grid.

    Parameters
    ----------
    operations
        By channel, from ``resolved``.
    batch
        Tiles at a time.
    spill, scratch
        As for ``BoundedBlend``.
    tick
        Called with the number of tiles that were blended.
    """
    tiles = grid.tiles
    batches = [
        range(first, min(first + batch, row + tiles.per_row))
        for row in range(0, len(tiles), tiles.per_row)
        for first in range(row, row + tiles.per_row, batch)
    ]
    with (
        open_windows(grid, operations) as windows,
        BoundedBlend(
            tiles.shape,
            tiles.tile,
            tiles.overlap,
            engine.out_channels,
            importance(tiles.tile, "half" if grid.nnunet else grid.inference.importance),
            flips=tiles.flips,
            even=tiles.even,
            spill=spill,
            scratch=scratch,
        ) as blend,
    ):
        results = prefetch(engine, network_tiles(grid, windows, batches, batch), ahead=batch > 1)
        for numbers in batches:
            values = next(results)
            for slot, number in enumerate(numbers):
                yield from blend.add(number, grid.axes.view(values[slot]))
            del values  # before the engine makes the next ones: not every engine has an array for them
            tick(len(numbers))


def label_planes(
    grid: NetworkGrid, channels: int, blocks: Iterator[Block], to_labels: LogitsToLabels, scratch: Path = Path()
) -> Iterator[Labels]:
    """Label planes on the file's own grid, in order.

    Parameters
    ----------
    channels
        Channels of the blocks' values.
    scratch
        Directory on the disk where planes wait whose largest components are kept.

    Yields
    ------
    array (x, y, k)
        Valid until the next one.
    """
    rule = grid.inference
    if rule.largest is None:
        yield from _planes(grid, channels, blocks, to_labels)
        return
    values = rule.largest or None
    if not (rule.largest_first and grid.resampled):
        yield from largest_only(_planes(grid, channels, blocks, to_labels), values, scratch)
        return
    planes = largest_only(_gathered(grid.tiles.shape, grid.tiles, blocks, to_labels), values, scratch)
    kept = (Block((0, 0, number), plane[None].astype(np.float32), last=True) for number, plane in enumerate(planes))
    yield from _restored(grid, 1, 1, kept, to_labels, lambda values: values)


def _planes(grid: NetworkGrid, channels: int, blocks: Iterator[Block], to_labels: LogitsToLabels) -> Iterator[Labels]:
    if not grid.resampled:
        yield from _gathered(grid.volume.shape, grid.tiles, blocks, to_labels)
        return
    restored = grid.inference.restored

    def prepared(values: Array) -> Array:
        if restored == "logits":
            return values
        if restored == "labels":
            return to_labels(values)[None].astype(np.float32)
        return to_labels.probabilities(values, restored)

    kept = restored_channels(grid, channels, to_labels.classes)
    yield from _restored(grid, kept, grid.tiles.tile[2], blocks, to_labels, prepared)


def _gathered(shape: Shape, tiles: TileGrid, blocks: Iterator[Block], to_labels: LogitsToLabels) -> Iterator[Labels]:
    """Label planes on the grid of the blocks."""
    planes = LabelPlanes(shape, row_depth(tiles, shape), to_labels.dtype)
    for block in blocks:
        yield from planes.add(block, to_labels(block.values))
        del block  # with the engine's array that it is a view of


def _restored(
    grid: NetworkGrid,
    channels: int,
    depth: int,
    blocks: Iterator[Block],
    to_labels: LogitsToLabels,
    prepared: Callable[[Array], Array],
) -> Iterator[Labels]:
    """Label planes on the file's grid, of blocks whose values are ``prepared`` and then resampled to it.

    Parameters
    ----------
    channels
        Of the prepared values.
    depth
        Planes of a block at most.
    """
    shape, to_file, rule = grid.volume.shape, grid.to_file, grid.inference
    planes = LabelPlanes(shape, row_depth(grid.tiles, shape, to_file[2]), to_labels.dtype)
    resampler = InverseResampler(channels, grid.tiles.shape, shape, depth, to_file)
    decide = to_labels if rule.restored == "logits" else to_labels.of_probabilities()
    for block in blocks:
        block = replace(block, values=prepared(block.values))
        for piece in resampler(block):
            if rule.restored == "labels":
                labels = (np.rint(piece.values[0]) if rule.interpolated else piece.values[0]).astype(to_labels.dtype)
            else:
                labels = decide(piece.values)
            yield from planes.add(piece, labels)
            del piece  # before the next one is made
        del block
