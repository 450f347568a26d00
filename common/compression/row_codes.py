"""Matrices as codes of 0 to 8 bits a number, more of them in columns and rows that matter more, with a scale a row.

A number is a level of its column: one of Lloyd and Max's levels of a standard normal number, times the column's
deviation, times the row's scale. Rows with a larger scale may have more bits: there are classes of rows, by their
scales, each with its own bits of the columns (``row_levels.shared_bits``). Since a row's scale says which class it is
of, that takes no byte of the row. Columns should be uncorrelated under the weights, so a matrix is first rotated onto
the eigenvectors of the other side's Gramian.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.compression.codes import BLOCK_ROWS, CodedMatrix
from common.compression.row_grid import Grid, groups, nearest, span_of
from common.compression.row_levels import levels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCALE_BYTES = 1
"""Bytes of a row's scale: 0 is a row of zeros, and 255 the largest scale."""
DECODED_ROWS = 256
"""Rows whose bits are unpacked at a time: arrays of more would be mapped anew. 41,000 rows of 128 numbers then
take 22 ms of processor time instead of 53, with the thresholds of ``common.memory.process.glibc``."""
RANKED = 1 << 8
"""Rows of which it is counted how many of each class come before them: a place is found by at most as many scales."""
LISTED = 1 << 15
"""Rows whose classes are compared at a time."""


def row_bytes(bits: int) -> int:
    """Bytes of a row with so many bits in all, with its scale.

    Examples
    --------
    >>> row_bytes(264), row_bytes(1)
    (34, 2)
    """
    return -(-bits // 8) + SCALE_BYTES


@dataclass(frozen=True, slots=True)
class RowCodes(CodedMatrix):
    """Rows as codes.

    Attributes
    ----------
    packed
        Bits of the rows of each class, one class after the other, uint8 of shape (bytes,). Of a row the lowest bit
        comes first: columns with most bits first, and of columns with as many bits first the highest bit of each.
    scales
        Code of each row's scale, uint8 of shape (rows,).
    grid
        The levels.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    grid: Grid
    _before: NDArray[np.int32] = field(init=False, repr=False)
    """Rows of each class before each ``RANKED`` of them, shape (classes, blocks + 1)."""

    def __post_init__(self) -> None:
        import numpy as np

        count, blocks = len(self.grid.bits), -(-len(self.scales) // RANKED)
        before = np.zeros((count, blocks + 1), np.int32)
        for block in range(blocks if count > 1 else 0):
            kinds = self.grid.classes(self.scales[block * RANKED : (block + 1) * RANKED])
            before[:, block + 1] = np.bincount(kinds, minlength=count)
        if count == 1:
            before[0] = np.minimum(np.arange(blocks + 1) * RANKED, len(self.scales))
        else:
            before.cumsum(1, out=before)
        object.__setattr__(self, "_before", before)

    @classmethod
    def of(
        cls,
        rows: NDArray[np.float32],
        grid: Grid,
        weights: NDArray[np.floating[Any]] | None = None,
        kinds: NDArray[np.uint8] | None = None,
    ) -> RowCodes:
        """Encode a matrix: the nearest levels, with the scale of each row that has the least weighted error.

        Parameters
        ----------
        rows
            Shape (rows, width); not changed.
        grid
            The levels; without units, they are fitted.
        weights
            Weights of the columns' squared errors, shape (width,); ``None``: all the same.
        kinds
            Class of each row; ``None``: the only one, or by its length.
        """
        import numpy as np

        importance = np.ones(grid.width, np.float32) if weights is None else weights.astype(np.float32)
        found, scales = np.empty(rows.shape, np.uint8), np.empty(len(rows), np.float32)
        if kinds is None:
            kinds = np.zeros(len(rows), np.uint8) if len(grid.bits) == 1 else grid.chosen(rows)
        for start in range(0, len(rows), BLOCK_ROWS):
            span = slice(start, start + BLOCK_ROWS)
            found[span], scales[span] = nearest(rows[span], grid, importance, kinds[span])
        grid = grid if grid.units.any() else grid.fitted(scales, kinds)
        for start in range(0, len(rows), BLOCK_ROWS):
            span = slice(start, start + BLOCK_ROWS)
            found[span], scales[span] = grid.settled(rows[span], scales[span], kinds[span])
        return cls.made(found, scales, kinds, grid)

    @classmethod
    def made(
        cls, found: NDArray[np.uint8], scales: NDArray[np.float32], kinds: NDArray[np.uint8], grid: Grid
    ) -> RowCodes:
        """The codes of numbers of levels, shape (rows, width), of scales and of classes, shape (rows,) each."""
        import numpy as np

        parts = []
        for number, bits in enumerate(grid.bits):
            rows = np.flatnonzero(kinds == number) if len(grid.bits) > 1 else slice(None)
            parts.append(packed_rows(found[rows], bits).ravel())
        return cls(np.concatenate(parts), grid.scale_codes(scales, kinds), grid)

    def taken(self, rows: NDArray[np.integer[Any]]) -> RowCodes:
        """The codes of some rows, which are increasing."""
        import numpy as np

        parts = []
        for number in range(len(self.grid.bits)):
            own = np.flatnonzero(self.grid.classes(self.scales) == number)
            parts.append(self.part(number)[np.flatnonzero(np.isin(own, rows))].ravel())
        return RowCodes(np.concatenate(parts), self.scales[rows], self.grid)

    def with_rows(self, rows: NDArray[np.float32]) -> RowCodes:
        """The same with the nearest codes of further rows after all others, shape (n, width)."""
        import numpy as np

        more = RowCodes.of(rows, self.grid)
        parts = [part for number in range(len(self.grid.bits)) for part in (self.part(number), more.part(number))]
        return RowCodes(
            np.concatenate([part.ravel() for part in parts]), np.concatenate([self.scales, more.scales]), self.grid
        )

    def __len__(self) -> int:
        return len(self.scales)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.grid.width

    @property
    def expected_bytes(self) -> int:
        """Bytes of the packed rows, by the classes that their scales say."""
        return int((self._before[:, -1].astype("i8") * self.grid.packed_bytes).sum())

    @property
    def stored_bytes(self) -> int:
        """Bytes of the rows with their scales."""
        return len(self.packed) + len(self.scales)

    def part(self, number: int) -> NDArray[np.uint8]:
        """Packed rows of a class, in the order of the rows: a view of shape (rows, bytes)."""
        import numpy as np

        counts, sizes = self._before[:, -1].astype(np.int64), self.grid.packed_bytes
        start = int((counts[:number] * sizes[:number]).sum())
        size, count = int(sizes[number]), int(counts[number])
        view: NDArray[np.uint8] = self.packed[start : start + count * size].reshape(count, size)
        return view

    def stored_order(self) -> Iterator[tuple[slice | NDArray[np.intp], int, slice]]:
        """Yield some rows, their class, and their places in it, until all have come, rows with most bits first."""
        import numpy as np

        for number in range(len(self.grid.bits) - 1, -1, -1):
            place = 0
            for start in range(0, len(self), LISTED):
                stop = min(start + LISTED, len(self))
                if len(self.grid.bits) == 1:
                    yield slice(start, stop), 0, slice(start, stop)
                    continue
                rows = np.flatnonzero(self.grid.classes(self.scales[start:stop]) == number) + start
                if len(rows):
                    yield rows, number, slice(place, place + len(rows))
                place += len(rows)

    def decode_into(self, rows: slice | NDArray[Any], out: NDArray[np.float32]) -> None:
        """Decode some rows; see ``CodedMatrix``."""
        import numpy as np

        if len(self.grid.bits) == 1:
            self.decode_places(0, rows, rows, out)
            return
        some = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        for start in range(0, len(some), DECODED_ROWS):
            these = some[start : start + DECODED_ROWS]
            kinds, places = self._ranked(these)
            for number in np.flatnonzero(np.bincount(kinds)):
                own = np.flatnonzero(kinds == number)
                room = np.empty((len(own), self.width), np.float32)
                self.decode_places(int(number), these[own], places[own], room)
                out[start + own] = room

    def decode_places(
        self,
        number: int,
        rows: slice | NDArray[Any],
        places: slice | NDArray[Any],
        out: NDArray[np.float32],
    ) -> None:
        """Write some rows of a class into ``out``, which are at these places of it."""
        stored = self.part(number)[places]
        for start in range(0, len(stored), DECODED_ROWS):
            span = slice(start, start + DECODED_ROWS)
            _unpack(stored[span], self.grid.bits[number], out[span])
        out *= self.grid.deviations
        out *= self.grid.scale_values(self.scales[rows])[:, None]

    def _ranked(self, rows: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
        """Classes of some rows, and their places in them."""
        import numpy as np

        kinds = self.grid.classes(self.scales[rows])
        blocks = rows // RANKED
        near = (blocks * RANKED)[:, None] + np.arange(RANKED)
        same = self.grid.classes(self.scales.take(near, mode="clip")) == kinds[:, None]
        places = self._before[kinds, blocks] + (same & (near < rows[:, None])).sum(1)
        return kinds, places


def _unpack(stored: NDArray[np.uint8], each: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the levels of some rows with so many bits in the columns."""
    import numpy as np

    unpacked = np.unpackbits(stored, axis=1, bitorder="little")
    start = 0
    for bits, columns in groups(each):
        count = len(columns)
        if not bits:
            out[:, span_of(columns)] = 0
            continue
        codes = unpacked[:, start : start + count]
        for plane in range(1, bits):
            codes = codes << np.uint8(1)
            codes |= unpacked[:, start + plane * count : start + (plane + 1) * count]
        out[:, span_of(columns)] = levels(bits).take(codes)
        start += bits * count


def packed_rows(found: NDArray[np.uint8], bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack numbers of levels, shape (rows, width), as ``RowCodes.packed``."""
    import numpy as np

    packed = np.empty((len(found), row_bytes(int(bits.sum(dtype=np.int64))) - SCALE_BYTES), np.uint8)
    if not packed.size:
        return packed
    for start in range(0, len(found), BLOCK_ROWS):
        some = found[start : start + BLOCK_ROWS]
        planes = [
            (some[:, columns] >> np.uint8(count - 1 - plane)) & np.uint8(1)
            for count, columns in groups(bits)
            for plane in range(count)
        ]
        packed[start : start + BLOCK_ROWS] = np.packbits(np.concatenate(planes, axis=1), axis=1, bitorder="little")
    return packed
