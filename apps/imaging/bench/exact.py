"""Compare labels from bounded blending with labels from a float32 accumulator over the whole volume, on 500 volumes.

``python -m apps.imaging.bench.exact [CASES]`` prints the number of differing labels; 0 is the bound. Shape, tile,
overlap, classes, spacing (a resampling factor per axis) and orientation (reversed axes) are drawn at random. The
reference resamples the whole volume of values. Blending in feature space is compared where the two best logits are at
least 1e-5 apart.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.inference.labeling.decision import LogitsToLabels
from apps.imaging.inference.labeling.planes import LabelPlanes, row_depth
from apps.imaging.inference.labeling.resampling import InverseResampler
from apps.imaging.volumes.geometry import LinearInterpolation
from common.tiling.blend import BoundedBlend
from common.tiling.grid import TileGrid, importance

CASES = 500
MARGIN = 1e-5
Array = npt.NDArray[np.float32]


def draw(random: np.random.Generator) -> tuple[TileGrid, tuple[int, int, int], int, int]:
    """Draw a grid, the file's shape, and the numbers of features and classes."""
    shape = tuple(int(size) for size in random.integers(1, 41, 3))
    tile = tuple(int(size) for size in random.integers(4, 21, 3))
    overlap = float(random.choice([0.0, 0.1, 0.25, 0.5, 0.6]))
    flips = tuple(bool(flip) for flip in random.integers(0, 2, 3))
    same = random.random() < 0.4
    factors = np.ones(3) if same else random.uniform(0.4, 1.8, 3)
    x, y, z = (max(1, round(size * factor)) for size, factor in zip(shape, factors, strict=True))
    return TileGrid(shape, tile, overlap, flips), (x, y, z), int(random.integers(2, 9)), int(random.integers(2, 13))  # type: ignore[arg-type]


def whole_volume(grid: TileGrid, tiles: list[Array], weights: Array, shape: tuple[int, int, int]) -> Array:
    """Blend the whole volume in memory, the reference.

    Returns
    -------
    float32 array, (channels, x, y, z)
    """
    total, count = np.zeros((len(tiles[0]), *grid.padded), np.float32), np.zeros(grid.padded, np.float32)
    for position, tile in zip(grid, tiles, strict=True):
        covered = tuple(slice(p, p + t) for p, t in zip(position, grid.tile, strict=True))
        total[(slice(None), *covered)] += tile * weights
        count[covered] += weights
    inside = tuple(slice(b, b + s) for b, s in zip(grid.before, grid.shape, strict=True))
    values = (total / count)[(slice(None), *inside)]
    if shape != grid.shape:
        for axis in (2, 0, 1):
            values = LinearInterpolation.between(values.shape[axis + 1], shape[axis])(values, axis + 1)
    return values


def streamed(
    grid: TileGrid,
    tiles: list[Array],
    weights: Array,
    shape: tuple[int, int, int],
    maker: LogitsToLabels,
    spill: Any,
    scratch: Path | None,
) -> npt.NDArray[Any]:
    """Blend as ``imaging infer`` does; returns the labels."""
    channels = len(tiles[0])
    back = InverseResampler(channels, grid.shape, shape, grid.tile[2]) if shape != grid.shape else None
    planes, finished = LabelPlanes(shape, row_depth(grid, shape), maker.dtype), []
    with BoundedBlend(
        grid.shape, grid.tile, grid.overlap, channels, weights, flips=grid.flips, spill=spill, scratch=scratch
    ) as blend:
        for index, tile in enumerate(tiles):
            for block in blend.add(index, tile.copy()):
                for piece in back(block) if back is not None else (block,):
                    labels = maker(piece.values)
                    finished += [each.copy() for each in planes.add(piece.low, labels, last=piece.last)]
    return np.concatenate(finished, axis=2)


def compare(cases: int, scratch: Path) -> dict[str, int]:
    """Count differing labels by mode."""
    different = {"carry": 0, "rows": 0, "columns": 0, "features": 0, "voxels": 0, "cases": 0}
    for number in range(cases):
        random = np.random.default_rng([7, number])
        grid, shape, features, classes = draw(random)
        weights = importance(grid.tile)
        tiles = [random.standard_normal((features, *grid.tile), np.float32) for _ in range(len(grid))]
        weight = random.standard_normal((classes, features)).astype(np.float32)
        bias = random.standard_normal(classes).astype(np.float32)
        values = whole_volume(grid, tiles, weights, shape)
        plain = LogitsToLabels(range(features))
        for mode, folder in (("carry", None), ("rows", scratch), ("columns", scratch)):
            labels = streamed(grid, tiles, weights, shape, plain, mode if folder else "memory", folder)
            different[mode] += int((labels != values.argmax(axis=0)).sum())
        logits = [np.einsum("cf,fxyz->cxyz", weight, tile) + bias[:, None, None, None] for tile in tiles]
        mixed = whole_volume(grid, [tile.astype(np.float32) for tile in logits], weights, shape)
        labels = streamed(grid, tiles, weights, shape, LogitsToLabels(range(classes), (weight, bias)), "memory", None)
        best = np.sort(mixed, axis=0)
        clear = best[-1] - best[-2] > MARGIN
        different["features"] += int(((labels != mixed.argmax(axis=0)) & clear).sum())
        different["voxels"] += labels.size
        different["cases"] += 1
    return different


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(compare(int(sys.argv[1]) if len(sys.argv) > 1 else CASES, Path(directory))))
