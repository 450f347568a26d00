"""Run ``imaging infer`` with one network: images in, label files out, tile by tile and finished block by block."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from threadpoolctl import threadpool_limits

from apps.imaging.inference.components.filters import least_voxels, without_small
from apps.imaging.inference.focus import Box
from apps.imaging.inference.labeling.decision import LogitsToLabels
from apps.imaging.inference.labeling.planes import Array, Labels, row_depth
from apps.imaging.inference.labeling.restoring import label_planes
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.inference.outputs import Outputs
from apps.imaging.inference.phases import INFER, OPEN, PREVIEW, STATISTICS, STOW
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
from apps.imaging.models.model_folder import TORCH_NETWORK
from apps.imaging.volumes.nonzero_crop import uncropped
from apps.imaging.volumes.one_hot import OneHot, StoredLabels
from common.cli.session import Session
from common.engines.base import Engine, Output, read_head
from common.engines.constant_tiles import KeptOutput, tile_outputs
from common.engines.mirroring import MirrorEngine
from common.engines.registry import open_engine
from common.engines.timed import TimedEngine
from common.memory.plan.plan import Setting
from common.memory.process import glibc
from common.model_folder import shipped_note
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


@dataclass(frozen=True, slots=True)
class OpenNetwork:
    """The network made ready for tiles, and what makes labels of its values."""

    engine: Engine
    to_labels: LogitsToLabels

    @classmethod
    def of(cls, request: InferRequest, session: Session, setting: Setting) -> "OpenNetwork":
        """Load the network as the plan's setting has it."""
        choice, plan = request.model, setting
        model, device = choice.model, session.device
        with session.phase(OPEN), session.reserving():  # compiled code and scratch that is hardly touched
            engine = open_engine(
                model.directory,
                name=choice.engine,
                precision=choice.precision,
                tile=choice.tile,
                batch=int(plan["batch"]),
                threads=session.threads,
                output=cast(Output, plan["space"]),
                head=model.head,
                builder=TORCH_NETWORK,
                device=device.name if device and choice.engine == "torch" else "cpu",
                heap=plan["allocator"] == "heap",
            )
        engine = TimedEngine(engine, lambda seconds: _count(session, "network_seconds", seconds))
        if choice.mirror:
            engine = MirrorEngine(engine, ["xyz".index(axis) for axis in choice.mirror], batch=int(plan["batch"]))
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


def announce(request: InferRequest, session: Session) -> None:
    """Say which model and engine were chosen, where the command line does not."""
    choice = request.model
    if note := shipped_note(choice.model.directory):
        session.say(note)
    if request.options.engine == "auto" and choice.engine != "openvino" and session.device is None:
        session.say(f"imaging infer: OpenVINO is not installed, using {choice.engine}")


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
        if int(setting["batch"]) > 1:
            # The network computes meanwhile: a product of matrices on several threads would wait for a core for each.
            stack.enter_context(threadpool_limits(1, "blas"))
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
            recalled=lambda: _count(session, "constant_tiles", 1),
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


def _count(session: Session, name: str, more: float) -> None:
    """Add to a number in the record."""
    session.results[name] = session.results.get(name, 0) + more


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
