"""A study's images on the network's grid: the geometry that pricing, inference and quantisation share."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from apps.imaging.models.model_folder import ImagingModel, Inference
from apps.imaging.volumes import intensity
from apps.imaging.volumes.foreground import with_margin
from apps.imaging.volumes.geometry import (
    AreaInterpolation,
    AxisMapping,
    LinearInterpolation,
    centred_grid,
    network_grid,
)
from apps.imaging.volumes.nonzero_crop import Content, Cropped, union
from apps.imaging.volumes.spline import nearest_axis
from apps.imaging.volumes.volume import Shape, Volume, spacing
from common.errors import BadInput
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
    whole: Shape = (0, 0, 0)
    """Shape of the network's grid over the whole image."""
    low: Shape | None = None
    """First voxel, in it, of the box that ``tiles`` cover; ``None``: they cover all of it."""
    box: tuple[Shape, Shape] | None = None
    """First voxel in the file, and one beyond the last, of the box that is segmented; ``None``: all of it is."""
    masked: bool = False
    """True if a normalisation of nnU-Net's leaves out what is zero in every channel, apart from holes."""
    further: tuple["NetworkGrid", ...] = ()
    """The images of the other channels, on the same grid."""
    masks: int = 0
    """Further channels of the network that are labels of a previous stage."""

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
        if model.inference.size:
            width, height, depth = model.inference.size
            shape = axes.to_file((width, height, depth))
        elif model.convention == "bundle":
            shape, steps = centred_grid(volume.shape, volume.affine, target)
        else:
            x, y, z = (new or old for new, old in zip(target, stored, strict=True))
            target = (x, y, z)
            tolerance = {"tolerance": 0.0} if nnunet else {}
            shape = network_grid(volume.shape, volume.affine, target, **tolerance)
        images, predictions = model.inference.separate
        low, size = None, shape
        if crop := intensity.crop_of(model.intensity):  # the largest box that it may leave
            margin = axes.to_file(intensity.margin_of(crop))
            low, size = with_margin((0, 0, 0), shape, shape, margin, smaller=bool(crop.get("smaller")))
        return cls(
            volume,
            axes,
            TileGrid(size, axes.to_file(tile), overlap, axes.flips, nnunet),
            tile,
            nnunet,
            nearest_axis(stored, target, images) if nnunet else None,
            nearest_axis(target, stored, predictions) if nnunet else None,
            steps=steps,
            inference=model.inference,
            whole=shape,
            low=low,
            masked=nnunet and any(one.get("nonzero") for operations in model.intensities for one in operations),
            further=tuple(cls.of(other, model, tile=tile, overlap=overlap) for other in further),
            masks=len(model.previous),
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
        """True if the network's grid is not the file's, or not all of it."""
        return self.whole != self.volume.shape or self.steps is not None or self.low is not None

    @property
    def by_spline(self) -> bool:
        """True if images are resampled by nnU-Net's splines."""
        return self.nnunet and self.resampled and self.inference.interpolation == "cubic"

    @property
    def to_network(self) -> tuple[LinearInterpolation, ...]:
        """From the file's grid to the network's, along the file's axes, where it is linear."""
        sizes = list(zip(self.volume.shape, self.whole, strict=True))
        if self.inference.size:
            return self._areas(sizes)
        if self.steps is None:
            return tuple(_between(size, new, axis == self.nearest) for axis, (size, new) in enumerate(sizes))
        return tuple(
            LinearInterpolation.centred(size, new, step, flipped=flip)
            for (size, new), step, flip in zip(sizes, self.steps, self._turned, strict=True)
        )

    @property
    def to_file(self) -> tuple[LinearInterpolation, ...]:
        """From what the tiles cover to the file's grid, or to the box that is segmented, along the file's axes."""
        found, sizes = self._to_file, self.tiles.shape
        if self.box is not None and self.low is not None:
            boxes = zip(found, *self.box, self.low, strict=True)
            return tuple(one.part(first, stop, low) for one, first, stop, low in boxes)
        if self.low is None:
            return found
        return tuple(one.within(low, size) for one, low, size in zip(found, self.low, sizes, strict=True))

    @property
    def _to_file(self) -> tuple[LinearInterpolation, ...]:
        sizes = list(zip(self.whole, self.volume.shape, strict=True))
        if self.inference.size:
            return self._areas(sizes)
        if self.steps is None:
            return tuple(_between(size, new, axis == self.nearest_back) for axis, (size, new) in enumerate(sizes))
        nearest = self.inference.restored == "labels" and not self.inference.interpolated
        return tuple(
            LinearInterpolation.centred(size, new, 1 / step, flipped=flip, nearest=nearest)
            for (size, new), step, flip in zip(sizes, self.steps, self._turned, strict=True)
        )

    @property
    def _turned(self) -> tuple[bool, bool, bool]:
        """For each file axis, whether grids coincide at its end."""
        return (False, False, False) if self.inference.turned_last else self.axes.flips

    def _areas(self, sizes: Sequence[tuple[int, int]]) -> tuple[LinearInterpolation, ...]:
        flips = zip(sizes, self.axes.flips, strict=True)
        return tuple(AreaInterpolation.of(size, new, flipped=flip) for (size, new), flip in flips)

    @property
    def segmented(self) -> Shape:
        """Voxels of the file that are segmented."""
        if self.box is None:
            return self.volume.shape
        x, y, z = (stop - first for first, stop in zip(*self.box, strict=True))
        return x, y, z

    def focused(self, low: Shape, high: Shape) -> tuple["NetworkGrid", Shape]:
        """The same with only the tiles that have a part in the labels of a box; each is where it was.

        Parameters
        ----------
        low, high
            First voxel of the box in the file, and one beyond the last.

        Returns
        -------
        tuple
            The grid, and the first voxel in the file of what its labels then cover: the box, or more than that.
        """
        found = [self._near(axis, low[axis], high[axis]) for axis in range(3)]
        (x, y, z), positions = (first for first, _, _ in found), tuple(each for _, _, each in found)
        stop = (found[0][1], found[1][1], found[2][1])
        size = (stop[0] - x, stop[1] - y, stop[2] - z)
        tiles = replace(self.tiles, shape=size, positions=positions)
        if self.resampled:
            further = tuple(other.focused(low, high)[0] for other in self.further)
            return replace(self, tiles=tiles, low=(x, y, z), box=(low, high), further=further), low
        boxed = [replace(one, volume=Cropped(one.volume, (x, y, z), stop), tiles=tiles) for one in self.channels]
        first, *others = (replace(one, whole=size, further=()) for one in boxed)
        return replace(first, further=tuple(others)), (x, y, z)

    def _near(self, axis: int, low: int, high: int) -> tuple[int, int, tuple[int, ...]]:
        """Along an axis, first voxel and end of the tiles that have a part in the labels of ``low`` to ``high``, and
        their positions from that voxel."""
        if self.resampled:
            way = self._to_file[axis]
            low, high = int(way.lower[low:high].min()), int(way.upper[low:high].max()) + 1
        tile, before, size = self.tiles.tile[axis], self.tiles.before[axis], self.tiles.shape[axis]
        near = [start for start in self.tiles.starts(axis) if low < start - before + tile and start - before < high]
        first, stop = max(0, near[0] - before), min(size, near[-1] - before + tile)
        return first, stop, tuple(start - near[0] for start in near)

    def to_box(self, low: Shape, high: Shape) -> tuple[Shape, Shape]:
        """The box of the file whose voxels lie next to those of a box of the network's grid."""
        if not self.resampled:
            return low, high
        ends = []
        for way, first, stop in zip(self._to_file, low, high, strict=True):
            ends.append((np.searchsorted(way.upper, first), np.searchsorted(way.lower, stop - 1, side="right")))
        (x, x_stop), (y, y_stop), (z, z_stop) = ((int(a), int(b)) for a, b in ends)
        return (x, y, z), (x_stop, y_stop, z_stop)

    def cropped(self, low: Shape, size: Shape) -> "NetworkGrid":
        """The same with tiles over a box of the network's grid."""
        further = tuple(other.cropped(low, size) for other in self.further)
        return replace(self, tiles=replace(self.tiles, shape=size), low=low, further=further)


def _between(size: int, new: int, nearest: bool) -> LinearInterpolation:
    return LinearInterpolation.nearest(size, new) if nearest else LinearInterpolation.between(size, new)


def same_grid(first: Volume, volume: Volume, other: Path, path: Path) -> None:
    """Compare a further channel of a study with its first.

    Parameters
    ----------
    volume, other
        The image of the further channel, and its file or folder.
    path
        File or folder of the first.

    Raises
    ------
    BadInput
        If it is not on the first one's grid, within ``GRID_TOLERANCE``.
    """
    if volume.shape != first.shape or not np.allclose(volume.affine, first.affine, atol=GRID_TOLERANCE):
        what = "shape" if volume.shape != first.shape else "place or spacing"
        message = f"not on the grid of {path.name}, the study's first channel: its {what} differs; resample it first"
        raise BadInput(f"{other}: {message}", public="channels on different grids")


def restored_channels(grid: NetworkGrid, channels: int, classes: int) -> int:
    """Values of each voxel that are resampled to the file's grid; ``channels`` are the blend's."""
    return {"logits": channels, "labels": 1}.get(grid.inference.restored, classes)
