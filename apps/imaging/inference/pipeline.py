"""Run ``imaging infer`` with one network: images in, label files out, tile by tile and finished block by block."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from apps.imaging.inference.components.filters import largest_only, least_voxels, without_small
from apps.imaging.inference.focus import Box
from apps.imaging.inference.labeling.agreement import labels_of_block
from apps.imaging.inference.labeling.decision import LogitsToLabels
from apps.imaging.inference.labeling.planes import Array, LabelPlanes, Labels, row_depth
from apps.imaging.inference.labeling.resampling import InverseResampler
from apps.imaging.inference.network_grid import NetworkGrid, restored_channels
from apps.imaging.inference.open_network import OpenNetwork, announce, count
from apps.imaging.inference.outputs import Outputs
from apps.imaging.inference.phases import INFER, PREVIEW, STATISTICS, STOW
from apps.imaging.inference.reading import (
    Operations,
    may_recall,
    open_windows,
    resolved,
    stage_masks,
    tile_steps,
    within_content,
)
from apps.imaging.inference.request import InferRequest
from apps.imaging.inference.studies import Study, each_study
from apps.imaging.inference.writing.probabilities import Probabilities
from apps.imaging.volumes.nonzero_crop import uncropped
from apps.imaging.volumes.one_hot import OneHot, StoredLabels
from apps.imaging.volumes.volume import Shape
from common.cli.session import Session
from common.engines.base import Engine
from common.engines.constant_tiles import KeptOutput, tile_outputs
from common.memory.plan.plan import Setting
from common.memory.process import glibc
from common.tiling.blend import Block, BoundedBlend, Spilled
from common.tiling.grid import importance


def run(request: InferRequest, session: Session) -> dict[str, Any]:
    """Segment the studies with one network; returns and raises as ``each_study``."""
    setting = dict(session.plan.knobs)
    announce(request, session)
    network = OpenNetwork.of(request, session, setting)

    def segment(stem: Path, study: Study, grid: NetworkGrid, uids: str, key: str) -> None:
        _segment(request, session, network, setting, stem, study, grid, uids)

    return each_study(request, session, segment)


def _segment(
    request: InferRequest,
    session: Session,
    network: "OpenNetwork",
    setting: Setting,
    stem: Path,
    study: Study,
    grid: NetworkGrid,
    key: str,
) -> None:
    """Segment one study with one network, as ``Segment``."""
    glibc.trim()  # what the study before left free is 3.7 MiB in the heap
    dtype = network.to_labels.dtype
    outputs = Outputs(request.outputs, stem.parent, stem.name, grid.volume, request.model.model, key, dtype)
    outputs.prepare(session)
    kept = outputs.probabilities
    with study_planes(request, session, network, setting, study.study, grid, probabilities=kept) as planes, outputs:
        write(outputs, planes, request.options.remove_small, request.inputs.scratch)
    finish(outputs, session)


def write(outputs: Outputs, planes: Iterator[Labels], remove_small: float, scratch: Path) -> None:
    """Write label planes to all outputs of a study, which are open.

    Parameters
    ----------
    remove_small
        Millilitres below which a connected part becomes background.
    scratch
        Directory on the disk where planes wait for that.
    """
    if remove_small:
        planes = without_small(planes, least_voxels(remove_small, outputs.volume.affine), scratch)
    for labels in planes:
        outputs.write(labels)
    outputs.save()


def finish(outputs: Outputs, session: Session) -> None:
    """Draw the preview and send objects, as far as that was asked."""
    if outputs.request.preview:
        with session.phase(PREVIEW):
            outputs.draw()
    if outputs.request.stow:
        with session.phase(STOW):
            outputs.send()


@contextmanager
def study_planes(
    request: InferRequest,
    session: Session,
    network: OpenNetwork,
    setting: Setting,
    label: str,
    grid: NetworkGrid,
    *,
    stage: StoredLabels | None = None,
    probabilities: Probabilities | None = None,
    box: Box | None = None,
) -> Iterator[Iterator[Labels]]:
    """A study's label planes on the file's own grid, in order; they are made while they are taken.

    Parameters
    ----------
    label
        Name of the work for its progress.
    stage
        Labels of the previous stage of a cascade.
    probabilities
        Takes those of all classes.
    box
        Of the file: only the tiles are run that have a part in its labels, and all else becomes background.
    """
    model, scratch, dtype = request.model.model, request.inputs.scratch, network.to_labels.dtype
    with ExitStack() as stack:
        with session.phase(STATISTICS):
            inside, first = stack.enter_context(within_content(grid, model, scratch))
            operations = resolved(inside, model)
            masks = stack.enter_context(stage_masks(inside, model, stage, first, scratch))
        whole, within = inside, box and box.moved(first or (0, 0, 0), inside.volume.shape)
        if within:
            inside, covered = inside.focused(within.low, within.high)
        stack.enter_context(session.phase(INFER))
        bar = stack.enter_context(session.progress(total=len(inside.tiles), unit="tile", label=label))
        blocks = finished_values(
            inside,
            network.engine,
            operations,
            batch=int(setting["batch"]),
            spill=cast(Spilled, setting["spill"]),
            scratch=scratch,
            masks=masks,
            tick=bar.update,
            recalled=lambda: count(session, "constant_tiles", 1),
        )
        if probabilities:
            along_z = inside.to_file[2] if inside.resampled else None
            probabilities.place(first, inside.volume.shape, row_depth(inside.tiles, inside.volume.shape, along_z))
        planes: Iterator[Labels] = label_planes(
            inside, network.engine.out_channels, blocks, network.to_labels, scratch, probabilities
        )
        if within:
            planes = within.kept(uncropped(planes, whole.volume.shape, covered, dtype), whole.volume.shape)
        yield planes if first is None else uncropped(planes, grid.volume.shape, first, dtype)


def finished_values(
    grid: NetworkGrid,
    engine: Engine,
    operations: Sequence[Operations],
    *,
    batch: int = 1,
    spill: Spilled = "memory",
    scratch: Path | None = None,
    masks: OneHot | None = None,
    tick: Callable[[int], Any] = lambda count: None,
    recalled: Callable[[], Any] = lambda: None,
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
    masks
        Labels of a previous stage.
    tick
        Called with the number of tiles that were blended.
    recalled
        Called for each tile that holds one value, as the one before it of its kind, and was not computed again.
    """
    tiles = grid.tiles
    recall = scratch is not None and may_recall(grid, engine, batch, scratch)
    with (
        open_windows(grid, operations, masks) as windows,
        KeptOutput(scratch) if recall and scratch else nullcontext() as kept,
        BoundedBlend(
            tiles.shape,
            tiles.tile,
            tiles.overlap,
            engine.out_channels,
            _weights(grid),
            flips=tiles.flips,
            even=tiles.even,
            positions=tiles.positions,
            spill=spill,
            scratch=scratch,
        ) as blend,
    ):
        steps = tile_steps(grid, windows, batch, recall=recall)
        for number, values in tile_outputs(engine, steps, kept, ahead=batch > 1, recalled=recalled):
            yield from blend.add(number, grid.axes.view(values))
            del values  # before the engine makes the next ones: not every engine has an array for them
            tick(1)


def _weights(grid: NetworkGrid) -> Array:
    """Weights of a tile's voxels along the file's axes; those of nnU-Net have their peak behind the middle."""
    weights = importance(grid.tiles.tile, "half" if grid.nnunet else grid.inference.importance)
    flipped = tuple(axis for axis, flip in enumerate(grid.tiles.flips) if flip)
    return np.ascontiguousarray(np.flip(weights, flipped)) if grid.nnunet and flipped else weights


def label_planes(
    grid: NetworkGrid,
    channels: int,
    blocks: Iterator[Block],
    to_labels: LogitsToLabels,
    scratch: Path = Path(),
    probabilities: Probabilities | None = None,
) -> Iterator[Labels]:
    """Label planes on the file's own grid, in order.

    Parameters
    ----------
    channels
        Channels of the blocks' values.
    scratch
        Directory on the disk where planes wait whose largest components are kept.
    probabilities
        Takes those of all classes, which filters of the labels leave as they are.

    Yields
    ------
    array (x, y, k)
        Valid until the next one.
    """
    rule = grid.inference
    if rule.largest is None:
        yield from _planes(grid, channels, blocks, to_labels, probabilities)
        return
    values = rule.largest or None
    if not (rule.largest_first and grid.resampled):
        yield from largest_only(_planes(grid, channels, blocks, to_labels, probabilities), values, scratch)
        return
    planes = largest_only(_gathered(grid, grid.tiles.shape, blocks, to_labels), values, scratch)
    kept = (Block((0, 0, number), plane[None].astype(np.float32), last=True) for number, plane in enumerate(planes))
    yield from _restored(grid, 1, 1, kept, to_labels, lambda values: values)


def _planes(
    grid: NetworkGrid,
    channels: int,
    blocks: Iterator[Block],
    to_labels: LogitsToLabels,
    probabilities: Probabilities | None,
) -> Iterator[Labels]:
    if not grid.resampled:
        yield from _gathered(grid, grid.segmented, blocks, to_labels, probabilities)
        return
    restored = grid.inference.restored

    def prepared(values: Array) -> Array:
        if restored == "logits":
            return values
        if restored == "labels":
            return to_labels(values)[None].astype(np.float32)
        return to_labels.probabilities(values, restored)

    kept = restored_channels(grid, channels, to_labels.classes)
    yield from _restored(grid, kept, grid.tiles.tile[2], blocks, to_labels, prepared, probabilities)


def _gathered(
    grid: NetworkGrid,
    shape: Shape,
    blocks: Iterator[Block],
    to_labels: LogitsToLabels,
    probabilities: Probabilities | None = None,
) -> Iterator[Labels]:
    """Label planes on the grid of the blocks."""
    planes = LabelPlanes(shape, row_depth(grid.tiles, shape), to_labels.dtype)
    for block in blocks:
        if probabilities:
            probabilities.keep(block, to_labels.probability_rows(block.values, grid.inference.activation))
        yield from planes.add(block.low, to_labels(block.values), last=block.last)
        del block  # with the engine's array that it is a view of


def _restored(
    grid: NetworkGrid,
    channels: int,
    depth: int,
    blocks: Iterator[Block],
    to_labels: LogitsToLabels,
    prepared: Callable[[Array], Array],
    probabilities: Probabilities | None = None,
) -> Iterator[Labels]:
    """Label planes on the file's grid, of blocks whose values are ``prepared`` and then resampled to it.

    Parameters
    ----------
    channels
        Of the prepared values.
    depth
        Planes of a block at most.
    """
    shape, to_file, rule = grid.segmented, grid.to_file, grid.inference
    planes = LabelPlanes(shape, row_depth(grid.tiles, shape, to_file[2]), to_labels.dtype)
    resampler = InverseResampler(channels, grid.tiles.shape, shape, depth, to_file)
    logits = rule.restored == "logits"
    decide = to_labels if logits else to_labels.of_probabilities()
    for block in blocks:
        block = replace(block, values=prepared(block.values))
        if not probabilities and rule.restored != "labels":
            for low, labels, last in labels_of_block(block, resampler, decide):
                yield from planes.add(low, labels, last=last)
            del block
            continue
        for piece in resampler(block):
            if probabilities:
                rows = to_labels.probability_rows(piece.values, rule.activation) if logits else [(0, piece.values)]
                probabilities.keep(piece, rows)
            if rule.restored == "labels":
                labels = (np.rint(piece.values[0]) if rule.interpolated else piece.values[0]).astype(to_labels.dtype)
            else:
                labels = decide(piece.values)
            yield from planes.add(piece.low, labels, last=piece.last)
            del piece  # before the next one is made
        del block
