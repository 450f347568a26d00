"""A study's images as the network sees them: the box that it sees, intensities, tiles, plane by plane."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from shutil import disk_usage

import numpy as np
import numpy.typing as npt

from apps.imaging.inference.components.filters import without_holes
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.models.model_folder import ImagingModel
from apps.imaging.volumes import intensity
from apps.imaging.volumes.filled import Filled, MaskFile
from apps.imaging.volumes.foreground import BoxedReader, positive_box, with_margin
from apps.imaging.volumes.nonzero_crop import content, union
from apps.imaging.volumes.one_hot import OneHot, StageLabels, StoredLabels
from apps.imaging.volumes.spline import Limits, SplineReader
from apps.imaging.volumes.streaming import AreaReader, PlaneRingBuffer, ResamplingReader
from apps.imaging.volumes.volume import BLOCK_BYTES, PlaneReader, Shape, blocks, scaled
from common.engines.base import Array, DoubleBuffer, Engine
from common.engines.constant_tiles import Step, TileOutput, constant
from common.tiling.blend import FLOAT


@contextmanager
def within_content(grid: NetworkGrid, model: ImagingModel, scratch: Path) -> Iterator[tuple[NetworkGrid, Shape | None]]:
    """The grid that is segmented, and the first voxel of its box in the file.

    nnU-Net's models see only the box that is not zero, for which the voxel is needed to put labels back; those of a
    bundle with a crop see the box that is positive. For all others the grid stays.

    Parameters
    ----------
    scratch
        Directory of nnU-Net's mask, where the model's normalisation has one.
    """
    if crop := intensity.crop_of(model.intensity):
        yield _foreground(grid, model, crop), None
        return
    if not grid.nnunet:
        yield grid, None
        return
    contents = [content(channel.volume.shape, blocks(channel.volume)) for channel in grid.channels]
    inside, first = grid.within(contents, model), union(contents)[0]
    if not grid.masked:
        yield inside, first
        return
    with MaskFile(inside.volume.shape, scratch) as mask:
        mask.write(without_holes(_nonzero(inside), inside.volume.shape[2], scratch))
        channels = (replace(each, volume=Filled(each.volume, mask)) for each in inside.channels)
        one, *others = channels
        yield replace(one, further=tuple(others)), first


def _foreground(grid: NetworkGrid, model: ImagingModel, crop: intensity.Operation) -> NetworkGrid:
    """The grid of the box in which some channel is positive, as MONAI takes it."""
    margin = grid.axes.to_file(intensity.margin_of(crop))
    whole = grid.cropped((0, 0, 0), grid.whole)
    operations = [_before_crop(channel, own) for channel, own in zip(whole.channels, model.intensities, strict=True)]
    with ExitStack() as stack:
        readers = [
            _on_grid(channel, stack.enter_context(channel.volume.open()), own)
            for channel, own in zip(whole.channels, operations, strict=True)
        ]
        planes = [np.empty((1, grid.whole[1], grid.whole[0]), np.float32) for _ in readers]

        def positive() -> Iterator[npt.NDArray[np.bool_]]:
            for _ in range(grid.whole[2]):
                found = np.zeros(planes[0].shape[1:], bool)
                for reader, plane in zip(readers, planes, strict=True):
                    reader.read(plane)
                    found |= plane[0] > 0
                yield found

        low, size = positive_box(positive(), grid.whole)
    return grid.cropped(*with_margin(low, size, grid.whole, margin, smaller=bool(crop.get("smaller"))))


def _nonzero(grid: NetworkGrid) -> Iterator[npt.NDArray[np.bool_]]:
    """Planes (y, x) of the voxels that are not zero in some channel."""
    with ExitStack() as stack:
        volumes = [channel.volume for channel in grid.channels]
        readers = [stack.enter_context(volume.open()) for volume in volumes]
        planes = [np.empty((1, volume.shape[1], volume.shape[0]), volume.dtype) for volume in volumes]
        for _ in range(grid.volume.shape[2]):
            found = np.zeros(planes[0].shape[1:], bool)
            for volume, reader, plane in zip(volumes, readers, planes, strict=True):
                reader.read(plane)
                found |= scaled(volume, plane[0]) != 0
            yield found


@dataclass(frozen=True, slots=True)
class Operations:
    """Intensity operations of one channel, with numbers in the place of statistics."""

    after: Sequence[intensity.Operation]
    """On the network's grid."""
    before: Sequence[intensity.Operation] = ()
    """On the file's."""
    middle: Sequence[intensity.Operation] = ()
    """On the network's, before a crop."""
    limits: Limits | None = None
    """Values to which splines are cut, where they are taken."""


def resolved(grid: NetworkGrid, model: ImagingModel) -> list[Operations]:
    """The intensity operations of each channel, their statistics taken in passes over the images."""
    return [
        _resolved(channel, operations) for channel, operations in zip(grid.channels, model.intensities, strict=True)
    ]


def _resolved(grid: NetworkGrid, operations: Sequence[intensity.Operation]) -> Operations:
    before, after = intensity.split(operations)
    if grid.nnunet and grid.resampled:  # nnU-Net normalises first
        own = intensity.resolve(operations, lambda: blocks(grid.volume))
        if not grid.by_spline or grid.nearest == 2:
            return Operations((), own)
        normalised = (intensity.apply(own, block) for block in blocks(grid.volume))
        return Operations((), own, limits=Limits.of(normalised, grid.nearest))
    if intensity.RESAMPLE not in operations:
        return Operations(intensity.resolve(after, lambda: blocks(grid.volume)))
    if intensity.crop_of(operations):
        first = _before_crop(grid, operations)
        _, after = intensity.split(after, "crop")
        return replace(first, after=intensity.resolve(after, lambda: _blocks_on_grid(grid, first)))
    early = Operations((), intensity.resolve(before, lambda: blocks(grid.volume)))
    return replace(early, after=intensity.resolve(after, lambda: _blocks_on_grid(grid, early)))


def _before_crop(grid: NetworkGrid, operations: Sequence[intensity.Operation]) -> Operations:
    before, rest = intensity.split(operations)
    middle, _ = intensity.split(rest, "crop")
    early = Operations((), intensity.resolve(before, lambda: blocks(grid.volume)))
    whole = grid.cropped((0, 0, 0), grid.whole)
    return replace(early, middle=intensity.resolve(middle, lambda: _blocks_on_grid(whole, early)))


def _blocks_on_grid(grid: NetworkGrid, operations: Operations) -> Iterator[Array]:
    """One pass over what the tiles cover, (k, y, x) float32, after the operations in front of ``after``."""
    if not grid.resampled:
        yield from (intensity.apply(operations.before, block) for block in blocks(grid.volume))
        return
    x, y, z = grid.tiles.shape
    buffer = np.empty((min(z, pass_planes(grid)), y, x), np.float32)
    with grid.volume.open() as stored:
        reader = _on_grid(grid, stored, operations)
        for start in range(0, z, len(buffer)):
            planes = buffer[: min(len(buffer), z - start)]
            reader.read(planes)
            yield planes


def _on_grid(grid: NetworkGrid, reader: PlaneReader, operations: Operations) -> PlaneReader:
    """Planes of what the tiles cover, after the operations in front of ``after``, by linear interpolation or means."""
    if grid.inference.size:
        return AreaReader(grid.volume, reader, grid.to_network, operations.before)
    # MONAI resamples in double precision, in which sums hardly ever cancel to zero.
    keep, before = grid.steps is not None, operations.before
    planes = ResamplingReader(grid.volume, reader, grid.whole, grid.to_network, before, keep_zeros=keep)
    if grid.low is None:
        return planes
    return BoxedReader(planes, grid.whole, grid.low, grid.tiles.shape, operations.middle)


def pass_planes(grid: NetworkGrid) -> int:
    """Planes of the network's grid that a pass over an image holds at a time."""
    x, y, _ = grid.tiles.shape
    return max(1, BLOCK_BYTES // (x * y * FLOAT))


@contextmanager
def open_windows(
    grid: NetworkGrid, operations: Sequence[Operations], masks: OneHot | None = None
) -> Iterator[list[PlaneRingBuffer]]:
    """Open each channel on the network's grid, resampled as the model's convention has it.

    Parameters
    ----------
    operations
        By channel, from ``resolved``.
    masks
        Labels of a previous stage, which are further channels.
    """
    with ExitStack() as stack:
        readers = [stack.enter_context(channel.volume.open()) for channel in grid.channels]
        windows = [_window(*channel) for channel in zip(grid.channels, readers, operations, strict=True)]
        for channel in range(masks.channels if masks else 0):
            assert masks is not None
            windows.append(PlaneRingBuffer(grid.volume, masks.reader(channel), grid.tiles, (), ready=True))
        yield windows


@contextmanager
def stage_masks(
    grid: NetworkGrid, model: ImagingModel, labels: StoredLabels | None, first: Shape | None, scratch: Path
) -> Iterator[OneHot | None]:
    """Labels of the previous stage on the network's grid; ``None`` for a model that takes none.

    Parameters
    ----------
    labels
        Those of the whole image.
    first
        First voxel of the network's box in it.
    """
    if labels is None:
        yield None
        return
    with MaskFile(grid.volume.shape, scratch) as inside:
        inside.write(without_holes(_nonzero(grid), grid.volume.shape[2], scratch))
        box = StageLabels(labels, first or (0, 0, 0), grid.volume.shape, model.previous, inside)
        masks = OneHot(box, grid.tiles.shape, grid.nearest, scratch)
    with masks:
        yield masks


def _window(grid: NetworkGrid, reader: PlaneReader, operations: Operations) -> PlaneRingBuffer:
    shape, after = grid.tiles.shape, operations.after
    if grid.by_spline:
        limits, nearest = operations.limits, grid.nearest
        reader = SplineReader(grid.volume, reader, grid.whole, operations.before, nearest=nearest, limits=limits)
        if grid.low is not None:
            reader = BoxedReader(reader, grid.whole, grid.low, shape, ())
    elif grid.resampled:
        reader = _on_grid(grid, reader, operations)
    else:
        after = (*operations.before, *after)
    edge = grid.inference.padding == "edge"
    return PlaneRingBuffer(grid.volume, reader, grid.tiles, after, ready=grid.resampled, edge=edge)


def may_recall(grid: NetworkGrid, engine: Engine, batch: int, scratch: Path) -> bool:
    """True if outputs of constant tiles may be kept: each tile runs by itself, and the disk has room for one."""
    alone = batch == 1 or engine.each_alone
    return alone and engine.out_channels * prod(grid.tile) * FLOAT < disk_usage(scratch).free


def tile_steps(grid: NetworkGrid, windows: Sequence[PlaneRingBuffer], batch: int, *, recall: bool) -> Iterator[Step]:
    """The network's input in batches, in the order of the tiles; no batch has tiles of two rows.

    Parameters
    ----------
    windows
        By channel, from ``open_windows``.
    batch
        Most tiles of a batch. Arrays are overwritten two batches later, those of single tiles at the next one.
    recall
        True: a tile that holds the same single value as the last such tile is not in the input again.
    """
    tiles, known, row = grid.tiles, None, grid.tiles.per_row
    inputs = DoubleBuffer((batch, len(windows), *grid.tile))
    array: Array | None = None
    outputs: list[TileOutput] = []
    used = 0
    for number, position in enumerate(tiles):
        if array is None:
            array = inputs.next(batch)
        for channel, window in enumerate(windows):
            window.advance(position[2])
            window.fill(position, grid.axes.view(array[used, channel]))
        value = constant(array[used]) if recall else None
        if value is not None and value == known:
            again = TileOutput(number, None)
            if used:
                outputs.append(again)
            else:
                yield Step(None, [again])
        else:
            known = value or known
            outputs.append(TileOutput(number, used, keep=value is not None))
            used += 1
        if used and (used == batch or (number + 1) % row == 0):
            yield Step(array[:used], outputs)
            array, outputs, used = None, [], 0


def network_tiles(
    grid: NetworkGrid, windows: Sequence[PlaneRingBuffer], batches: Sequence[Sequence[int]], batch: int
) -> Iterator[Array]:
    """The network's input, batch by batch.

    Parameters
    ----------
    windows
        By channel, from ``open_windows``.
    batches
        Numbers of the tiles of each batch, ascending.
    batch
        Most tiles of a batch.

    Yields
    ------
    array (n, channels, *tile)
        float32, in the model's axes; overwritten two batches later, of single tiles at the next one.
    """
    positions = list(grid.tiles)
    inputs = DoubleBuffer((batch, len(windows), *grid.tile))
    for numbers in batches:
        tiles = inputs.next(len(numbers))
        for channel, window in enumerate(windows):
            window.advance(positions[numbers[0]][2])
            for slot, number in enumerate(numbers):
                window.fill(positions[number], grid.axes.view(tiles[slot, channel]))
        yield tiles
