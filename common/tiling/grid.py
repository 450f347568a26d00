"""Tile positions and importance weights in NumPy, equal to those of MONAI's ``sliding_window_inference``.

Axes are (x, y, z) as in the file. z is the slowest axis on disk; tiles are enumerated with z outermost, so that a
volume can be read once from front to back.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Shape = tuple[int, int, int]
Weighting = Literal["gaussian", "constant", "half"]

SIGMA_SCALE = 0.125
"""Standard deviation of the Gaussian as a share of the tile's edge."""
HALF_SCALE = 10
"""The largest of nnU-Net's weights."""
LEAST_WEIGHT = 1e-3
"""Smallest weight: a corner voxel that only one tile covers must not be divided by nearly zero."""


def starts(size: int, tile: int, overlap: float) -> tuple[int, ...]:
    """Place tiles along one axis of ``size`` voxels; the last one is moved back to end with the volume.

    Examples
    --------
    >>> starts(100, 40, 0.25)
    (0, 30, 60)
    >>> starts(110, 40, 0.25)
    (0, 30, 60, 70)
    """
    if tile >= size:
        return (0,)
    interval = _interval(tile, overlap)
    return tuple(min(index * interval, size - tile) for index in range(count(size, tile, overlap)))


def even_starts(size: int, tile: int, overlap: float) -> tuple[int, ...]:
    """Place tiles as nnU-Net does: as few as the overlap allows, at even distances.

    Examples
    --------
    >>> even_starts(110, 64, 0.5)
    (0, 23, 46)
    """
    if tile >= size:
        return (0,)
    last, tiles = size - tile, count(size, tile, overlap, even=True)
    return tuple(round(last / (tiles - 1) * index) for index in range(tiles))


def count(size: int, tile: int, overlap: float, *, even: bool = False) -> int:
    """Count the tiles of ``starts`` or ``even_starts`` without listing them; a header may claim billions."""
    if tile >= size:
        return 1
    return math.ceil((size - tile) / (max(1, tile * (1 - overlap)) if even else _interval(tile, overlap))) + 1


def _interval(tile: int, overlap: float) -> int:
    return max(1, int(tile * (1 - overlap)))


@dataclass(frozen=True, slots=True)
class TileGrid:
    """The tiles of one volume, in file axes.

    Examples
    --------
    >>> grid = TileGrid((100, 40, 40), (40, 40, 40), 0.25)
    >>> len(grid), list(grid)
    (3, [(0, 0, 0), (30, 0, 0), (60, 0, 0)])
    """

    shape: Shape
    """Size of the volume in voxels."""
    tile: Shape
    """Size of a tile in voxels."""
    overlap: float
    """Share of a tile's edge that the next tile covers again, in [0, 1)."""
    flips: tuple[bool, bool, bool] = (False, False, False)
    """Axes that the network sees reversed: tiles are placed from the far end, as if the volume were flipped."""
    even: bool = False
    """Place tiles at even distances (nnU-Net) instead of moving the last one back (MONAI)."""
    positions: tuple[tuple[int, ...], ...] | None = None
    """Ascending positions along each axis, of a part of another grid's tiles; ``None``: they follow from the rest."""

    @property
    def padded(self) -> Shape:
        """Size of the volume after symmetric padding to at least one tile."""
        x, y, z = (max(size, tile) for size, tile in zip(self.shape, self.tile, strict=True))
        return x, y, z

    @property
    def before(self) -> Shape:
        """Voxels of padding in front of the volume along each axis."""
        x, y, z = (self._before(axis) for axis in range(3))
        return x, y, z

    def _before(self, axis: int) -> int:
        missing = max(0, self.tile[axis] - self.shape[axis])
        return missing - missing // 2 if self.flips[axis] else missing // 2

    def starts(self, axis: int) -> tuple[int, ...]:
        """Return ascending tile positions along one axis of the padded volume."""
        if self.positions is not None:
            return self.positions[axis]
        size, tile = self.padded[axis], self.tile[axis]
        positions = (even_starts if self.even else starts)(size, tile, self.overlap)
        return tuple(sorted(size - tile - start for start in positions)) if self.flips[axis] else positions

    def count(self, axis: int) -> int:
        """Return the number of tile positions along one axis."""
        if self.positions is not None:
            return len(self.positions[axis])
        return count(self.padded[axis], self.tile[axis], self.overlap, even=self.even)

    @property
    def per_row(self) -> int:
        """Number of tiles that share one position along z."""
        return self.count(0) * self.count(1)

    def __len__(self) -> int:
        return self.per_row * self.count(2)

    def __iter__(self) -> Iterator[Shape]:
        """Iterate over tile positions in the padded volume, z outermost."""
        xs, ys = self.starts(0), self.starts(1)
        return ((x, y, z) for z in self.starts(2) for x in xs for y in ys)


def importance(tile: Shape, weighting: Weighting = "gaussian") -> npt.NDArray[np.float32]:
    """Return the weight of each voxel of a tile in the blend.

    Parameters
    ----------
    tile
        Size of a tile in voxels.
    weighting
        ``"gaussian"``: MONAI's; ``"half"``: nnU-Net's Gaussian, computed in half precision; ``"constant"``: ones.

    Returns
    -------
    float32 array, shape ``tile``
    """
    if weighting == "constant":
        return np.ones(tile, np.float32)
    profiles = [_filtered(size) if weighting == "half" else _gaussian(size) for size in tile]
    weights: npt.NDArray[Any] = profiles[0][:, None, None] * profiles[1][None, :, None] * profiles[2][None, None, :]
    if weighting == "half":
        half = (HALF_SCALE * weights / weights.max()).astype(np.float16)
        least = half[half > 0].min()
        raised: npt.NDArray[np.float32] = np.maximum(half, least).astype(np.float32)
        return raised
    result: npt.NDArray[np.float32] = np.maximum(weights, max(float(weights.min()), LEAST_WEIGHT), dtype=np.float32)
    return result


def _gaussian(size: int) -> npt.NDArray[np.float32]:
    distance = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
    profile: npt.NDArray[np.float32] = np.exp(distance**2 / np.float32(-2 * (SIGMA_SCALE * size) ** 2))
    return profile


def _filtered(size: int) -> npt.NDArray[np.float64]:
    """Return a centred impulse after ``scipy.ndimage.gaussian_filter``, which is zero beyond four deviations."""
    distance = np.arange(size) - size // 2
    sigma = SIGMA_SCALE * size
    profile: npt.NDArray[np.float64] = np.exp(-0.5 * (distance / sigma) ** 2)
    profile[np.abs(distance) > int(4 * sigma + 0.5)] = 0
    return profile
