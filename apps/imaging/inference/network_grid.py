"""A study's images on the network's grid: the geometry that pricing, inference and quantisation share."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apps.imaging.inference.components.filters import without_holes
from apps.imaging.models.model_folder import ImagingModel, Inference
from apps.imaging.volumes import intensity
from apps.imaging.volumes.filled import Filled, MaskFile
from apps.imaging.volumes.geometry import AxisMapping, LinearInterpolation, centred_grid, network_grid
from apps.imaging.volumes.nonzero_crop import Content, Cropped, content, union
from apps.imaging.volumes.spline import Limits, SplineReader, nearest_axis
from apps.imaging.volumes.streaming import PlaneRingBuffer, ResamplingReader
from apps.imaging.volumes.volume import BLOCK_BYTES, PlaneReader, Shape, Volume, blocks, scaled, spacing
from common.engines.base import Array, DoubleBuffer
from common.errors import BadInput
from common.tiling.blend import FLOAT
from common.tiling.grid import TileGrid

GRID_TOLERANCE = 1e-3
"""Millimetres by which the grids of a study's channels may differ."""
LONGEST_AXIS = 65_535
"""Most voxels along an axis of the network's grid, DICOM's limit for an image: with an absurd spacing in its header a
small file would have billions."""


@dataclass(frozen=True, slots=True)
class NetworkGrid:
    """One image on the network's grid: arithmetic on its header, from which both the price and the work follow."""

    volume: Volume
    axes: AxisMapping
    """Mapping of the model's axes to the file's."""
    tiles: TileGrid
    """The network's grid and its tiles, in file axes."""
    tile: Shape
    """Voxels of a tile along the model's axes."""
    nnunet: bool = False
    """True if boxes, tiles, weights and resampling are nnU-Net's."""
    nearest: int | None = None
    """The file's axis along which the image is resampled to the nearest voxel."""
    nearest_back: int | None = None
    """The same for the way back, where nnU-Net looks at the grid that it comes from first."""
    steps: tuple[float, float, float] | None = None
    """Size of the network's voxels over the file's along each file axis, if the centres of the first voxels coincide;
    ``None``: the edges of both grids coincide."""
    inference: Inference = field(default_factory=Inference)
    masked: bool = False
    """True if a normalisation of nnU-Net's leaves out what is zero in every channel, apart from holes."""
    further: tuple["NetworkGrid", ...] = ()
    """The images of the other channels, on the same grid."""

    @classmethod
    def of(
        cls, volume: Volume, model: ImagingModel, *, tile: Shape, overlap: float, further: Sequence[Volume] = ()
    ) -> "NetworkGrid":
        """Lay the model's grid and tiles over an image.

        Parameters
        ----------
        tile
            Voxels along the model's axes.
        overlap
            Share of a tile that the next one covers again, in [0, 1).
        further
            The images of the other channels.
        """
        axes = AxisMapping.between(volume.affine, model.orientation)
        target, nnunet, steps = axes.to_file(model.spacing), model.convention == "nnunet", None
        stored = spacing(volume.affine)
        if model.convention == "bundle":
            shape, steps = centred_grid(volume.shape, volume.affine, target)
        else:
            x, y, z = (new or old for new, old in zip(target, stored, strict=True))
            target = (x, y, z)
            tolerance = {"tolerance": 0.0} if nnunet else {}
            shape = network_grid(volume.shape, volume.affine, target, **tolerance)
        images, predictions = model.inference.separate
        return cls(
            volume,
            axes,
            TileGrid(shape, axes.to_file(tile), overlap, axes.flips, nnunet),
            tile,
            nnunet,
            nearest_axis(stored, target, images) if nnunet else None,
            nearest_axis(target, stored, predictions) if nnunet else None,
            steps=steps,
            inference=model.inference,
            masked=nnunet and any(one.get("nonzero") for operations in model.intensities for one in operations),
            further=tuple(cls.of(other, model, tile=tile, overlap=overlap) for other in further),
        )

    def check(self, path: Path) -> None:
        """Refuse a grid that no image has, before anything is allocated that is as long as one of its axes.

        Raises
        ------
        BadInput
            If an axis has more than ``LONGEST_AXIS`` voxels.
        """
        if max(self.tiles.shape) > LONGEST_AXIS:
            voxels, sizes = (
                " x ".join(format(size, ".6g") for size in triple)
                for triple in (self.tiles.shape, spacing(self.volume.affine))
            )
            reason = f"{voxels} voxels on the model's grid, at most {LONGEST_AXIS} an axis"
            raise BadInput(f"{path}: {reason}; is its spacing, {sizes}, in mm?", public="too large a grid")

    @property
    def channels(self) -> tuple["NetworkGrid", ...]:
        """One grid for each of the network's input channels."""
        return (self, *self.further)

    def with_tiles(self, model: ImagingModel, tile: Shape, overlap: float) -> "NetworkGrid":
        """The same images under other tiles."""
        others = [channel.volume for channel in self.further]
        return NetworkGrid.of(self.volume, model, tile=tile, overlap=overlap, further=others)

    def within(self, contents: Sequence[Content], model: ImagingModel) -> "NetworkGrid":
        """The grid of the box in which some channel is not zero, as nnU-Net takes it.

        Parameters
        ----------
        contents
            Content of each channel.
        """
        low, high = union(contents)
        boxes = [Cropped(channel.volume, low, high) for channel in self.channels]
        return NetworkGrid.of(boxes[0], model, tile=self.tile, overlap=self.tiles.overlap, further=boxes[1:])

    @property
    def resampled(self) -> bool:
        """True if the network's grid is not the file's."""
        return self.tiles.shape != self.volume.shape or self.steps is not None

    @property
    def by_spline(self) -> bool:
        """True if images are resampled by nnU-Net's splines."""
        return self.nnunet and self.resampled and self.inference.interpolation == "cubic"

    @property
    def to_network(self) -> tuple[LinearInterpolation, ...]:
        """From the file's grid to the network's, along the file's axes, where it is linear."""
        sizes = list(zip(self.volume.shape, self.tiles.shape, strict=True))
        if self.steps is None:
            return tuple(_between(size, new, axis == self.nearest) for axis, (size, new) in enumerate(sizes))
        return tuple(
            LinearInterpolation.centred(size, new, step, flipped=flip)
            for (size, new), step, flip in zip(sizes, self.steps, self.axes.flips, strict=True)
        )

    @property
    def to_file(self) -> tuple[LinearInterpolation, ...]:
        """From the network's grid to the file's, along the file's axes."""
        sizes = list(zip(self.tiles.shape, self.volume.shape, strict=True))
        if self.steps is None:
            return tuple(_between(size, new, axis == self.nearest_back) for axis, (size, new) in enumerate(sizes))
        nearest = self.inference.restored == "labels"
        return tuple(
            LinearInterpolation.centred(size, new, 1 / step, flipped=flip, nearest=nearest)
            for (size, new), step, flip in zip(sizes, self.steps, self.axes.flips, strict=True)
        )


@contextmanager
def within_content(grid: NetworkGrid, model: ImagingModel, scratch: Path) -> Iterator[tuple[NetworkGrid, Shape | None]]:
    """The grid that is segmented, and the first voxel of its box in the file.

    nnU-Net's models see only the box that is not zero; for all others the grid stays and the voxel is ``None``.

    Parameters
    ----------
    scratch
        Directory of nnU-Net's mask, where the model's normalisation has one.
    """
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
        early = intensity.resolve(operations, lambda: blocks(grid.volume))
        if not grid.by_spline or grid.nearest == 2:
            return Operations((), early)
        normalised = (intensity.apply(early, np.asarray(block, np.float32)) for block in blocks(grid.volume))
        return Operations((), early, Limits.of(normalised, grid.nearest))
    if intensity.RESAMPLE not in operations:
        return Operations(intensity.resolve(after, lambda: blocks(grid.volume)))
    early = intensity.resolve(before, lambda: blocks(grid.volume))
    return Operations(intensity.resolve(after, lambda: _blocks_on_grid(grid, early)), early)


def _blocks_on_grid(grid: NetworkGrid, before: Sequence[intensity.Operation]) -> Iterator[Array]:
    """One pass over the image on the network's grid, (k, y, x) float32."""
    if not grid.resampled:
        yield from (intensity.apply(before, block) for block in blocks(grid.volume))
        return
    x, y, z = grid.tiles.shape
    buffer = np.empty((min(z, pass_planes(grid)), y, x), np.float32)
    with grid.volume.open() as stored:
        reader = _resampling(grid, stored, before)
        for start in range(0, z, len(buffer)):
            planes = buffer[: min(len(buffer), z - start)]
            reader.read(planes)
            yield planes


def _resampling(grid: NetworkGrid, reader: PlaneReader, before: Sequence[intensity.Operation]) -> ResamplingReader:
    # MONAI resamples in double precision, in which sums hardly ever cancel to zero.
    keep = grid.steps is not None
    return ResamplingReader(grid.volume, reader, grid.tiles.shape, grid.to_network, before, keep_zeros=keep)


def pass_planes(grid: NetworkGrid) -> int:
    """Planes of the network's grid that a pass over an image holds at a time."""
    x, y, _ = grid.tiles.shape
    return max(1, BLOCK_BYTES // (x * y * FLOAT))


@contextmanager
def open_windows(grid: NetworkGrid, operations: Sequence[Operations]) -> Iterator[list[PlaneRingBuffer]]:
    """Open each channel on the network's grid, resampled as the model's convention has it.

    Parameters
    ----------
    operations
        By channel, from ``resolved``.
    """
    with ExitStack() as stack:
        readers = [stack.enter_context(channel.volume.open()) for channel in grid.channels]
        yield [_window(*channel) for channel in zip(grid.channels, readers, operations, strict=True)]


def _window(grid: NetworkGrid, reader: PlaneReader, operations: Operations) -> PlaneRingBuffer:
    shape, after = grid.tiles.shape, operations.after
    if grid.by_spline:
        limits, nearest = operations.limits, grid.nearest
        reader = SplineReader(grid.volume, reader, shape, operations.before, nearest=nearest, limits=limits)
    elif grid.resampled:
        reader = _resampling(grid, reader, operations.before)
    else:
        after = (*operations.before, *after)
    edge = grid.inference.padding == "edge"
    return PlaneRingBuffer(grid.volume, reader, grid.tiles, after, ready=grid.resampled, edge=edge)


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


def _between(size: int, new: int, nearest: bool) -> LinearInterpolation:
    return LinearInterpolation.nearest(size, new) if nearest else LinearInterpolation.between(size, new)


def same_grid(first: Volume, others: Sequence[Volume]) -> None:
    """Compare the channels of a study.

    Raises
    ------
    BadInput
        If an image of a further channel is not on the first one's grid, within ``GRID_TOLERANCE``.
    """
    for volume in others:
        if volume.shape != first.shape or not np.allclose(volume.affine, first.affine, atol=GRID_TOLERANCE):
            message = "an image of a further channel is not on the grid of the study's first channel"
            raise BadInput(message, public="channels on different grids")


def restored_channels(grid: NetworkGrid, channels: int, classes: int) -> int:
    """Values of each voxel that are resampled to the file's grid; ``channels`` are the blend's."""
    return {"logits": channels, "labels": 1}.get(grid.inference.restored, classes)
