"""Weighted means of overlapping tiles, in memory that does not grow with the length of the volume.

The edges of all tiles cut the volume, without its padding, into cells: boxes whose voxels are covered by the same
tiles. From its first tile to its last a cell is kept as a partial sum; then it is final and leaves. Tiles arrive with z
outermost, so most cells are short-lived. Cells that wait for the next row of tiles along z, and optionally those that
wait for the next column along x, may be spilled to a file. Sums are taken in the order of the tiles, wherever the
partial sums are kept, so the result equals that of an accumulator over the whole volume bit for bit.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt

from common.tiling.grid import Shape, TileGrid
from common.tiling.spill import SpillFile

FLOAT = 4
"""Bytes of a float32."""
Array = npt.NDArray[np.float32]
Spilled = Literal["memory", "rows", "columns"]
"""Cells kept in a file: none; those that wait for the next row of tiles; also those that wait for the next column."""
Cell = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Block:
    """A finished box of the volume."""

    low: Shape
    """The first voxel."""
    values: Array
    """(channels, x, y, z); a view of the tile that finished the box, valid until that tile is overwritten."""
    last: bool
    """True for the last block of its row: all planes in front of the next row of tiles are then finished."""

    @property
    def high(self) -> Shape:
        """The voxel after the last one along each axis."""
        x, y, z = (start + size for start, size in zip(self.low, self.values.shape[1:], strict=True))
        return x, y, z


@dataclass(frozen=True, slots=True)
class _Axis:
    """The intervals into which the tiles' edges cut one axis of the volume; padding belongs to none."""

    starts: tuple[int, ...]
    tile: int
    """Length of a tile."""
    edges: npt.NDArray[np.int64]
    """(n + 1): interval i is [edges[i], edges[i + 1])."""
    first: npt.NDArray[np.int64]
    """(n): number of the first tile that covers each interval, tiles counted in ascending order."""
    last: npt.NDArray[np.int64]
    """(n): number of the last tile that covers each interval."""

    @classmethod
    def of(cls, grid: TileGrid, axis: int) -> "_Axis":
        starts, tile, before = grid.starts(axis), grid.tile[axis], grid.before[axis]
        borders = np.array([*starts, *(start + tile for start in starts)], np.int64)
        edges = np.unique(borders.clip(before, before + grid.shape[axis]))
        first = np.searchsorted(np.array(starts) + tile, edges[:-1], side="right")
        last = np.searchsorted(np.array(starts), edges[:-1], side="right") - 1
        return cls(starts, tile, edges, first.astype(np.int64), last.astype(np.int64))

    def pieces(self, number: int) -> list[tuple[int, slice]]:
        """Return the intervals of a tile, and the slice of the tile that each covers."""
        start = self.starts[number]
        low, high = np.searchsorted(self.edges, np.clip([start, start + self.tile], self.edges[0], self.edges[-1]))
        return [(int(i), slice(int(self.edges[i]) - start, int(self.edges[i + 1]) - start)) for i in range(low, high)]

    def next_start(self, number: int) -> int:
        """Return the start of the following tile, or the end of the last one."""
        return self.starts[number + 1] if number + 1 < len(self.starts) else self.starts[number] + self.tile


@dataclass(frozen=True, slots=True)
class _Part:
    """The part of a tile that lies in a cell."""

    cell: Cell
    cut: tuple[slice, slice, slice]
    """Of the tile."""
    begins: bool
    """True if the tile is the cell's first."""
    ends: bool
    """True if it is the last, which becomes the sum itself."""
    waits: bool
    """True if the next tile of the cell is in another row, or column."""

    def join(self, values: Array, sums: Array) -> None:
        """Add a tile's weighted values (..., x, y, z) to the cell's sums, or the sums to the last tile's values."""
        mine = values[(..., *self.cut)]
        if self.begins:
            sums[...] = mine
        elif self.ends:
            mine += sums
        else:
            sums += mine


class BoundedBlend(AbstractContextManager["BoundedBlend"]):
    """The weighted mean of overlapping tiles, finished box by box.

    Parameters
    ----------
    shape, tile, overlap, flips, even, positions
        As in ``TileGrid``; tiles must be added in its order.
    channels
        Values per voxel: logits, or features before a 1x1x1 head.
    weights
        Importance of each voxel of a tile, shape ``tile``.
    spill
        Cells that are kept in a file instead of memory.
    scratch
        Directory of that file.

    Examples
    --------
    >>> import numpy as np
    >>> with BoundedBlend((4, 4, 4), (4, 4, 4), 0.0, 1, np.ones((4, 4, 4), np.float32)) as blend:
    ...     [block] = blend.add(0, np.full((1, 4, 4, 4), 3, np.float32))
    >>> block.low, block.high, float(block.values.mean())
    ((0, 0, 0), (4, 4, 4), 3.0)
    """

    def __init__(
        self,
        shape: Shape,
        tile: Shape,
        overlap: float,
        channels: int,
        weights: Array,
        *,
        flips: tuple[bool, bool, bool] = (False, False, False),
        even: bool = False,
        positions: tuple[tuple[int, ...], ...] | None = None,
        spill: Spilled = "memory",
        scratch: Path | None = None,
    ) -> None:
        self.grid = TileGrid(shape, tile, overlap, flips, even, positions)
        self._axes = tuple(_Axis.of(self.grid, axis) for axis in range(3))
        self._order = list(product(*(range(len(self._axes[axis].starts)) for axis in (2, 0, 1))))
        self._weights, self._channels = weights, channels
        self._cells: dict[Cell, Array] = {}
        """Partial sums of values and, last, of weights: (channels + 1, x, y, z)."""
        self._same = 1 if spill == "columns" else 0
        self._spill = None if spill == "memory" or scratch is None else SpillFile(scratch)
        self._next = 0
        self.resident_bytes = 0
        """Present size of the partial sums in memory."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._spill is not None:
            self._spill.close()

    def add(self, index: int, tile: Array) -> Iterator[Block]:
        """Add one tile, float32 (channels, *tile), which is overwritten; yields the block that it finishes, if any.

        Raises
        ------
        ValueError
            Tiles do not arrive in the grid's order.
        """
        if index != self._next:
            raise ValueError(f"tile {index} arrived, tile {self._next} was expected")
        self._next += 1
        k, i, j = self._order[index]
        numbers = (i, j, k)
        weight = self._weights.copy()
        pieces = [self._axes[axis].pieces(numbers[axis]) for axis in range(3)]
        parts = [
            self._part((a, b, c), numbers, (along_x, along_y, along_z))
            for (a, along_x), (b, along_y), (c, along_z) in product(*pieces)
        ]
        known = self._add_held(parts, tile, weight)  # first: what ends there makes room for what is read or begins
        for part in parts:
            if part.cell not in known and not (part.begins and part.ends):
                self._add_cell(part, tile, weight)
        return self._finish(numbers, tile, weight)

    def _add_held(self, parts: list["_Part"], tile: Array, weight: Array) -> set[Cell]:
        """Weigh the tile and add it to the cells that are in memory, which are returned."""
        held = [(part, self._load_cell(part.cell, ())) for part in parts if part.cell in self._cells]
        for channel, values in enumerate(tile):  # one at a time, which stays in the processor's cache
            values *= self._weights
            for part, sums in held:
                part.join(values, sums[channel])
        for part, sums in held:
            part.join(weight, sums[-1])
            if not part.ends:
                self._store_cell(part, sums)
        return {part.cell for part, _ in held}

    def _part(self, cell: Cell, numbers: Shape, cut: tuple[slice, slice, slice]) -> "_Part":
        first = tuple(int(axis.first[interval]) for axis, interval in zip(self._axes, cell, strict=True))
        last = tuple(int(axis.last[interval]) for axis, interval in zip(self._axes, cell, strict=True))
        waits = numbers[self._same : 2] == last[self._same : 2]
        return _Part(cell, cut, numbers == first, numbers == last, waits)

    def _add_cell(self, part: "_Part", tile: Array, weight: Array) -> None:
        """Begin a cell, or add to one whose partial sums are in the file."""
        shape = (len(tile) + 1, *weight[part.cut].shape)
        sums = np.empty(shape, np.float32) if part.begins else self._load_cell(part.cell, shape)
        part.join(tile, sums[:-1])
        part.join(weight, sums[-1])
        if not part.ends:
            self._store_cell(part, sums)

    def _store_cell(self, part: "_Part", sums: Array) -> None:
        if part.waits and self._spill is not None:
            self._spill.write(part.cell, sums)
            return
        self._cells[part.cell] = sums
        self.resident_bytes += sums.nbytes

    def _load_cell(self, cell: Cell, shape: tuple[int, ...]) -> Array:
        partial = self._cells.pop(cell, None)
        if partial is None:
            assert self._spill is not None
            return self._spill.read(cell, shape)
        self.resident_bytes -= partial.nbytes
        return partial

    def _finish(self, numbers: Shape, tile: Array, weight: Array) -> Iterator[Block]:
        """Yield the box between this tile's corner and the next tile's along each axis, without padding."""
        cut, low = [], []
        for axis, number in enumerate(numbers):
            start, before = self._axes[axis].starts[number], self.grid.before[axis]
            stop = self._axes[axis].next_start(number)
            inside = max(start, before), min(stop, before + self.grid.shape[axis])
            if inside[0] >= inside[1]:
                return
            cut.append(slice(inside[0] - start, inside[1] - start))
            low.append(inside[0] - before)
        values = tile[(slice(None), *cut)]
        values /= weight[tuple(cut)]
        last = all(number + 1 == len(axis.starts) for number, axis in zip(numbers[:2], self._axes[:2], strict=True))
        yield Block((low[0], low[1], low[2]), values, last)


@dataclass(frozen=True, slots=True)
class BlendFootprint:
    """Peak bytes of a blend's partial sums."""

    memory: int
    """Partial sums in memory."""
    disk: int
    """Partial sums in the file."""
    transient: int = 0
    """Additional memory while one tile is added: a cell that is read from the file or written to it."""


PRICED_TILES = 1 << 20
"""Grids of more tiles get an upper bound in constant time: a header may claim 65,535 x 65,535 pixels."""


@lru_cache(maxsize=4096)
def blend_footprint(grid: TileGrid, channels: int, spill: Spilled = "memory") -> BlendFootprint:
    """Compute the peak bytes of a ``BoundedBlend``'s partial sums.

    Parameters
    ----------
    channels
        Values per voxel.

    Examples
    --------
    >>> from common.tiling.grid import TileGrid
    >>> blend_footprint(TileGrid((64, 64, 64), (32, 32, 32), 0.5), channels=8).disk
    0
    """
    if len(grid) > PRICED_TILES:
        return _bound(grid, channels, spill)
    x, y, z = (_Axis.of(grid, axis) for axis in range(3))
    columns, per_row, rows = len(y.starts), grid.per_row, len(z.starts)
    plane = np.multiply.outer(np.diff(x.edges), np.diff(y.edges))
    # Voxels that begin (positive) or cease (negative) to be in memory, and in the file, at each tile.
    resident, waiting = np.zeros(per_row * rows + 1, np.int64), np.zeros(per_row * rows + 1, np.int64)
    for depth, first, last in zip(np.diff(z.edges), z.first, z.last, strict=True):
        begins = np.add.outer(x.first * columns, y.first)
        ends = np.add.outer(x.last * columns, y.last)
        if spill == "memory":
            _mark(resident, first * per_row + begins, last * per_row + ends, plane * depth)
            continue
        _mark(waiting, first * per_row + begins, last * per_row + ends, plane * depth)
        for row in range(int(first), int(last) + 1):
            if spill == "rows":
                _mark(resident, row * per_row + begins, row * per_row + ends, plane * depth)
                continue
            for column in range(len(x.starts)):
                inside = ((x.first <= column) & (column <= x.last))[:, None] * plane * depth
                start = row * per_row + column * columns
                low, high = (np.broadcast_to(start + number, plane.shape) for number in (y.first, y.last))
                _mark(resident, low, high, inside)
    cell = FLOAT * (channels + 1)
    waits = {"memory": (), "rows": ((z, x, y),), "columns": ((z, x, y), (x, y, z))}[spill]
    moved = max((_largest_shared(axes) for axes in waits), default=0)
    return BlendFootprint(cell * int(np.cumsum(resident).max()), cell * int(np.cumsum(waiting).max()), cell * moved)


def _largest_shared(axes: tuple[_Axis, _Axis, _Axis]) -> int:
    """Return the voxels of the largest cell that two tiles share along the first axis; other cells are not stored."""
    lengths = [np.diff(axis.edges) for axis in axes]
    shared = lengths[0][axes[0].first != axes[0].last]
    return int(shared.max() * lengths[1].max() * lengths[2].max()) if len(shared) else 0


def _bound(grid: TileGrid, channels: int, spill: Spilled) -> BlendFootprint:
    """Return an upper bound: all that one row of tiles covers, of which a spilled blend keeps a strip or a tile."""
    x, y, _ = grid.padded
    width, height, depth = grid.tile
    plane, strip, tile = (FLOAT * (channels + 1) * area * depth for area in (x * y, width * y, width * height))
    if spill == "memory":
        return BlendFootprint(plane + tile, 0)
    return BlendFootprint(strip if spill == "rows" else tile, plane, tile)


def _mark(
    change: npt.NDArray[np.int64],
    begins: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
) -> None:
    """Count ``sizes`` from the tile numbers ``begins`` up to, but not including, ``ends``."""
    np.add.at(change, begins.ravel(), sizes.ravel())
    np.subtract.at(change, ends.ravel(), sizes.ravel())
