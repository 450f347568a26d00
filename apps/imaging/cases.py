"""One volume on the network's grid, and how its voxels come there: what pricing, inference and quantisation share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from apps.imaging import intensity
from apps.imaging.crop import Content, Cropped, content
from apps.imaging.geometry import Frame, Taps, centred_grid, network_grid
from apps.imaging.model import ImagingModel, Inference
from apps.imaging.spline import SplineReader, nearest_axis
from apps.imaging.streams import ResamplingReader, Window
from apps.imaging.volume import BLOCK_BYTES, PlaneReader, Shape, Volume, blocks, spacing
from common.engines.engine import Array as Tiles
from common.engines.engine import Turns
from common.tiling.blend import FLOAT
from common.tiling.grid import TileGrid


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


def within_content(case: Case, model: ImagingModel) -> tuple[Case, Content | None]:
    """The case that is worked on: nnU-Net looks only at the box that is not zero."""
    if not case.nnunet:
        return case, None
    found = content(case.volume.shape, blocks(case.volume))
    return case.within(found, model), found


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


def restored_channels(case: Case, channels: int, classes: int) -> int:
    """Values for each voxel that are brought back onto the file's grid; ``channels`` are the blend's."""
    return {"logits": channels, "labels": 1}.get(case.inference.restored, classes)
