"""One volume on the network's grid, and how its voxels come there: what pricing, inference and quantisation share."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from apps.imaging.models.model_folder import ImagingModel, Inference
from apps.imaging.volumes import intensity
from apps.imaging.volumes.geometry import AxisMapping, LinearInterpolation, centred_grid, network_grid
from apps.imaging.volumes.nonzero_crop import Content, Cropped, content, union
from apps.imaging.volumes.spline import SplineReader, nearest_axis
from apps.imaging.volumes.streaming import PlaneRingBuffer, ResamplingReader
from apps.imaging.volumes.volume import BLOCK_BYTES, PlaneReader, Shape, Volume, blocks, spacing
from common.engines.base import Array as Tiles
from common.engines.base import DoubleBuffer
from common.errors import BadInput
from common.tiling.blend import FLOAT
from common.tiling.grid import TileGrid

GRID_TOLERANCE = 1e-3
"""Millimetres by which the grids of a study's channels may differ."""
LONGEST_AXIS = 65_535
"""Voxels along an axis of the network's grid, as many as DICOM allows along a picture's: a header may claim spacings at
which a small file would have billions."""


@dataclass(frozen=True, slots=True)
class NetworkGrid:
    """One volume on the network's grid: pure arithmetic on its header, shared by the price and the work."""

    volume: Volume
    frame: AxisMapping
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
    further: tuple["NetworkGrid", ...] = ()
    """The images of the other channels, on the same grid."""

    @classmethod
    def of(
        cls, volume: Volume, model: ImagingModel, *, tile: Shape, overlap: float, further: Sequence[Volume] = ()
    ) -> "NetworkGrid":
        """Lay the model's grid and tiles over a volume, and over the other channels' volumes."""
        frame = AxisMapping.between(volume.affine, model.orientation)
        wanted, nnunet, steps = frame.to_file(model.spacing), model.convention == "nnunet", None
        if model.convention == "bundle":
            shape, steps = centred_grid(volume.shape, volume.affine, wanted)
        else:
            tolerance = {"tolerance": 0.0} if nnunet else {}
            shape = network_grid(volume.shape, volume.affine, wanted, **tolerance)
        grid = TileGrid(shape, frame.to_file(tile), overlap, frame.flips, nnunet)
        have = spacing(volume.affine)
        there, back = (nearest_axis(have, wanted), nearest_axis(wanted, have)) if nnunet else (None, None)
        others = tuple(cls.of(other, model, tile=tile, overlap=overlap) for other in further)
        return cls(
            volume, frame, grid, tile, nnunet, there, back, steps=steps, inference=model.inference, further=others
        )

    def check(self, path: Path) -> None:
        """Refuse a grid that no picture has, before anything is as long as one of its axes."""
        if max(self.grid.shape) > LONGEST_AXIS:
            voxels, sizes = (
                " x ".join(format(each, ".6g") for each in triple)
                for triple in (self.grid.shape, spacing(self.volume.affine))
            )
            reason = f"{voxels} voxels on the model's grid, at most {LONGEST_AXIS} an axis"
            raise BadInput(f"{path}: {reason}; is its spacing, {sizes}, in mm?", public="too large a grid")

    @property
    def channels(self) -> tuple["NetworkGrid", ...]:
        """One case for each of the network's input channels."""
        return (self, *self.further)

    def with_tiles(self, model: ImagingModel, tile: Shape, overlap: float) -> "NetworkGrid":
        """The same images under other tiles."""
        return NetworkGrid.of(
            self.volume, model, tile=tile, overlap=overlap, further=[each.volume for each in self.further]
        )

    def within(self, found: Sequence[Content], model: ImagingModel) -> "NetworkGrid":
        """The case of the box that is not zero in some channel, as nnU-Net takes it; ``found`` is by channel."""
        low, high = union(found)
        boxes = [Cropped(each.volume, low, high) for each in self.channels]
        case = NetworkGrid.of(boxes[0], model, tile=self.tile, overlap=self.grid.overlap, further=boxes[1:])
        first, *others = (replace(each, limits=one.limits) for each, one in zip(case.channels, found, strict=True))
        return replace(first, further=tuple(others))

    @property
    def resampled(self) -> bool:
        """Whether the network's grid is not the file's."""
        return self.grid.shape != self.volume.shape or self.steps is not None

    @property
    def taps(self) -> tuple[LinearInterpolation, ...]:
        """From the file's grid to the network's, along the file's axes; not for nnU-Net's, which takes splines."""
        pairs = list(zip(self.volume.shape, self.grid.shape, strict=True))
        if self.steps is None:
            return tuple(LinearInterpolation.between(size, new) for size, new in pairs)
        return tuple(
            LinearInterpolation.centred(size, new, step, flipped=flip)
            for (size, new), step, flip in zip(pairs, self.steps, self.frame.flips, strict=True)
        )

    @property
    def taps_back(self) -> tuple[LinearInterpolation, ...]:
        """From the network's grid to the file's."""
        pairs = list(zip(self.grid.shape, self.volume.shape, strict=True))
        if self.steps is None:
            return tuple(
                LinearInterpolation.nearest(size, new)
                if axis == self.nearest_back
                else LinearInterpolation.between(size, new)
                for axis, (size, new) in enumerate(pairs)
            )
        nearest = self.inference.restored == "labels"
        return tuple(
            LinearInterpolation.centred(size, new, 1 / step, flipped=flip, nearest=nearest)
            for (size, new), step, flip in zip(pairs, self.steps, self.frame.flips, strict=True)
        )


def within_content(case: NetworkGrid, model: ImagingModel) -> tuple[NetworkGrid, Shape | None]:
    """The case that is worked on: nnU-Net looks only at the box that is not zero. Also the box's first voxel."""
    if not case.nnunet:
        return case, None
    found = [content(each.volume.shape, blocks(each.volume)) for each in case.channels]
    return case.within(found, model), union(found)[0]


@dataclass(frozen=True, slots=True)
class Operations:
    """What is done to the voxels of one channel, in numbers."""

    after: Sequence[intensity.Operation]
    """On the network's grid."""
    before: Sequence[intensity.Operation] = ()
    """On the file's."""


def resolved(case: NetworkGrid, model: ImagingModel) -> list[Operations]:
    """What is done to each channel's voxels, with numbers instead of statistics."""
    return [_resolved(each, own) for each, own in zip(case.channels, model.intensities, strict=True)]


def _resolved(case: NetworkGrid, operations: Sequence[intensity.Operation]) -> Operations:
    before, after = intensity.split(operations)
    if intensity.RESAMPLE not in operations:
        return Operations(intensity.resolve(after, lambda: blocks(case.volume)))
    early = intensity.resolve(before, lambda: blocks(case.volume))
    return Operations(intensity.resolve(after, lambda: _blocks_on_grid(case, early)), early)


def _blocks_on_grid(case: NetworkGrid, before: Sequence[intensity.Operation]) -> Iterator[Tiles]:
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


def _resampling(case: NetworkGrid, reader: PlaneReader, before: Sequence[intensity.Operation]) -> ResamplingReader:
    """Zeros count where grids are MONAI's: its double precision sums hardly ever cancel."""
    keep = case.steps is not None
    return ResamplingReader(case.volume, reader, case.grid.shape, case.taps, before, keep_zeros=keep)


def pass_planes(case: NetworkGrid) -> int:
    """Planes of the network's grid that a pass holds at a time."""
    x, y, _ = case.grid.shape
    return max(1, BLOCK_BYTES // (x * y * FLOAT))


@contextmanager
def open_windows(case: NetworkGrid, operations: Sequence[Operations]) -> Iterator[list[PlaneRingBuffer]]:
    """Each channel on the network's grid, as the model's convention brings it there."""
    with ExitStack() as opened:
        readers = [opened.enter_context(each.volume.open()) for each in case.channels]
        yield [_window(*each) for each in zip(case.channels, readers, operations, strict=True)]


def _window(case: NetworkGrid, reader: PlaneReader, operations: Operations) -> PlaneRingBuffer:
    grid, after = case.grid, operations.after
    if case.nnunet and case.resampled:
        reader = SplineReader(case.volume, reader, grid.shape, after, nearest=case.nearest, limits=case.limits)
        after = ()
    elif case.resampled:
        reader = _resampling(case, reader, operations.before)
    else:
        after = (*operations.before, *after)
    return PlaneRingBuffer(
        case.volume, reader, grid, after, ready=case.resampled, edge=case.inference.padding == "edge"
    )


def network_tiles(
    case: NetworkGrid, windows: Sequence[PlaneRingBuffer], batches: Sequence[Sequence[int]], batch: int
) -> Iterator[Tiles]:
    """The network's input, batch by batch (numbers of tiles), in arrays that are used by turns."""
    positions = list(case.grid)
    inputs = DoubleBuffer((batch, len(windows), *case.tile))
    for chosen in batches:
        tiles = inputs.next(len(chosen))
        for channel, window in enumerate(windows):
            window.advance(positions[chosen[0]][2])
            for slot, index in enumerate(chosen):
                window.fill(positions[index], case.frame.view(tiles[slot, channel]))
        yield tiles


def same_grid(first: Volume, others: Sequence[Volume]) -> None:
    """Raise ``BadInput`` where a channel's volume does not lie where the first one's does."""
    for volume in others:
        if volume.shape != first.shape or not np.allclose(volume.affine, first.affine, atol=GRID_TOLERANCE):
            line = "an image of a further channel is not on the grid of the study's first channel"
            raise BadInput(line, public="channels on different grids")


def restored_channels(case: NetworkGrid, channels: int, classes: int) -> int:
    """Values for each voxel that are brought back onto the file's grid; ``channels`` are the blend's."""
    return {"logits": channels, "labels": 1}.get(case.inference.restored, classes)
