"""Matrices as codes of 0 to 8 bits a number, more of them in columns that matter more, with one scale for each row.

A number is a level of its column: one of Lloyd and Max's levels of a standard normal number, times the column's
deviation, times the row's scale. ``shared_bits`` gives a bit at a time to the column where it lowers the weighted
squared error most (reverse water-filling, in whole bits); a column may get none. Columns should be uncorrelated under
the weights, so a matrix is first rotated onto the eigenvectors of the other side's Gramian.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from common.compression.codes import BLOCK_ROWS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_BITS = 8
_UPPER_LEVELS = {
    1: (0.7979,),
    2: (0.4528, 1.5104),
    3: (0.2451, 0.7560, 1.3439, 2.1519),
    4: (0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.6180, 2.0690, 2.7326),
}
"""Bits -> the levels above 0 with the least squared error of a standard normal number (Max, "Quantizing for minimum
distortion", 1960); those below 0 mirror them."""
_STEPS = {5: 0.1895, 6: 0.1033, 7: 0.0573, 8: 0.0307}
"""Bits -> distance of evenly spaced levels with the least error: uneven ones save little from here on."""
ERRORS = (1.0, 0.3634, 0.1175, 0.03455, 0.009501, 0.003497, 0.001041, 0.0003046, 0.00008769)
"""Bits -> squared error of a standard normal number with these levels."""
SCALE_STEPS = 24
"""Codes of a scale by which it doubles: rounding changes a row by 0.8 % (root mean square), and scales may differ by a
factor of 1,500; smaller ones are made as large."""
SCALE_BYTES = 1
"""Bytes of a row's scale: 0 is a row of zeros, and 255 the largest scale."""
DECODED_ROWS = 256
"""Rows whose bits are unpacked at a time: arrays of more would be mapped anew. 41,000 rows of 128 numbers then
take 22 ms of processor time instead of 53, with the thresholds of ``common.memory.process.glibc``."""
FIT_ROUNDS = 3
"""Times that codes and scales of rows are fitted to each other; other numbers were not compared."""


def row_bytes(bits: int) -> int:
    """Bytes of a row with so many bits in all, with its scale.

    Examples
    --------
    >>> row_bytes(264), row_bytes(1)
    (34, 2)
    """
    return -(-bits // 8) + SCALE_BYTES


@cache
def levels(bits: int) -> NDArray[np.float32]:
    """The levels of a standard normal number, increasing, shape (``2 ** bits``,)."""
    import numpy as np

    if bits == 0:
        return np.zeros(1, np.float32)
    if bits in _STEPS:
        return ((np.arange(1 << bits) - ((1 << bits) - 1) / 2) * _STEPS[bits]).astype(np.float32)
    upper = np.array(_UPPER_LEVELS[bits], np.float32)
    return np.concatenate([-upper[::-1], upper])


@cache
def bounds(bits: int) -> NDArray[np.float32]:
    """The numbers at which the nearest level changes, shape (``2 ** bits - 1``,)."""
    import numpy as np

    each = levels(bits)
    return ((each[1:] + each[:-1]) / 2).astype(np.float32)


def shared_bits(weights: NDArray[np.floating[Any]], total: int, *, most: int = MOST_BITS) -> NDArray[np.uint8]:
    """Share bits out among columns.

    Parameters
    ----------
    weights
        Weighted variance of each column, shape (width,): what the error is without a bit.
    total
        Bits of a row; fewer are given if all columns have ``most``.
    most
        Most bits of a column.

    Returns
    -------
    NDArray
        Bits of each column, shape (width,).

    Examples
    --------
    >>> shared_bits(np.array([9.0, 1.0, 0.01]), 4)
    array([3, 1, 0], dtype=uint8)
    """
    import numpy as np

    bits = np.zeros(len(weights), np.uint8)
    gains = -np.diff(np.array(ERRORS[: most + 1]), append=ERRORS[most])
    gained = weights * gains[0]
    for _ in range(min(total, most * len(weights))):
        column = int(gained.argmax())
        bits[column] += 1
        gained[column] = weights[column] * gains[bits[column]] if bits[column] < most else -np.inf
    return bits


@dataclass(frozen=True, slots=True)
class RowCodes:
    """Rows as codes.

    Attributes
    ----------
    packed
        Bits of the rows, uint8 of shape (rows, bytes), the lowest bit first: columns with most bits first, and of
        columns with as many bits first the highest bit of each.
    scales
        Code of each row's scale, uint8 of shape (rows,).
    unit
        The largest scale, float32 of shape (1,).
    bits
        Bits of each column, uint8 of shape (width,).
    deviations
        Deviation of each column, float32 of shape (width,).
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    unit: NDArray[np.float32]
    bits: NDArray[np.uint8]
    deviations: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        rows: NDArray[np.float32],
        bits: NDArray[np.uint8],
        weights: NDArray[np.floating[Any]] | None = None,
        deviations: NDArray[np.float32] | None = None,
    ) -> RowCodes:
        """Encode a matrix: the nearest levels, with the scale of each row that has the least weighted error.

        Parameters
        ----------
        rows
            Shape (rows, width); not changed.
        bits
            Bits of each column, shape (width,).
        weights
            Weights of the columns' squared errors, shape (width,); ``None``: all the same.
        deviations
            Deviations of the columns, shape (width,); ``None``: those of the rows.
        """
        import numpy as np

        deviations = column_deviations(rows) if deviations is None else deviations
        importance = np.ones(len(bits), np.float32) if weights is None else weights.astype(np.float32)
        levels_of, scales = np.empty(rows.shape, np.uint8), np.empty(len(rows), np.float32)
        for start in range(0, len(rows), BLOCK_ROWS):
            span = slice(start, start + BLOCK_ROWS)
            levels_of[span], scales[span] = nearest(rows[span], bits, deviations, importance)
        return cls.made(levels_of, scales, bits, deviations)

    @classmethod
    def made(
        cls,
        found: NDArray[np.uint8],
        scales: NDArray[np.float32],
        bits: NDArray[np.uint8],
        deviations: NDArray[np.float32],
    ) -> RowCodes:
        """The codes of numbers of levels, shape (rows, width), and of scales, shape (rows,)."""
        import numpy as np

        unit = np.array([scales.max(initial=0)], np.float32)
        return cls(packed_rows(found, bits), scale_codes(scales, unit), unit, bits, deviations)

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return len(self.bits)

    def workspace(self, rows: int = BLOCK_ROWS) -> NDArray[np.float32]:
        """Room for as many decoded rows."""
        import numpy as np

        return np.empty((rows, self.width), np.float32)

    def decode(self, rows: slice | NDArray[Any], workspace: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Decode some rows.

        Parameters
        ----------
        rows
            A range of rows, or their numbers.
        workspace
            From ``workspace``; takes the result. ``None``: a new array does.

        Returns
        -------
        NDArray
            Shape (n, width); a view of the workspace.
        """
        stored = self.packed[rows]
        out = (self.workspace(len(stored)) if workspace is None else workspace)[: len(stored)]
        for start in range(0, len(stored), DECODED_ROWS):
            span = slice(start, start + DECODED_ROWS)
            self._unpack(stored[span], out[span])
        out *= self.deviations
        out *= scale_values(self.scales[rows], self.unit)[:, None]
        return out

    def _unpack(self, stored: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        """Write the levels of some rows."""
        import numpy as np

        unpacked = np.unpackbits(stored, axis=1, bitorder="little")
        start = 0
        for bits, columns in groups(self.bits):
            count = len(columns)
            if not bits:
                out[:, _span(columns)] = 0
                continue
            codes = unpacked[:, start : start + count]
            for plane in range(1, bits):
                codes = codes << np.uint8(1)
                codes |= unpacked[:, start + plane * count : start + (plane + 1) * count]
            out[:, _span(columns)] = levels(bits).take(codes)
            start += bits * count


def groups(bits: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield numbers of bits, from large to small and with 0, and the columns that have them."""
    import numpy as np

    for count in range(int(bits.max(initial=0)), -1, -1):
        columns = np.flatnonzero(bits == count)
        if len(columns):
            yield count, columns


def _span(columns: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """Columns as a slice where they follow each other, which is written faster."""
    first, last = int(columns[0]), int(columns[-1])
    return slice(first, last + 1) if last - first + 1 == len(columns) else columns


def column_deviations(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root of the mean square of each column, at least the smallest normal number, shape (width,)."""
    import numpy as np

    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), BLOCK_ROWS):
        some = rows[start : start + BLOCK_ROWS]
        total += np.einsum("ij,ij->j", some, some)
    found: NDArray[np.float32] = np.sqrt(total / max(1, len(rows))).astype(np.float32)
    return np.maximum(found, np.finfo(np.float32).tiny)


def nearest(
    rows: NDArray[np.float32],
    bits: NDArray[np.uint8],
    deviations: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Levels of some rows, and scales that fit them: each is the best for the other, in turn.

    Parameters
    ----------
    rows
        Shape (n, width).
    bits, deviations, weights
        As ``RowCodes``, and weights of the columns' squared errors, shape (width,) each.

    Returns
    -------
    tuple
        Numbers of levels, uint8 of shape (n, width), and scales, shape (n,).
    """
    import numpy as np

    used = np.flatnonzero(bits)
    unscaled = rows / deviations
    importance = (weights * deviations * deviations)[used]
    scales = np.sqrt(np.einsum("ij,ij->i", unscaled[:, used], unscaled[:, used]) / max(1, len(used)))
    found = np.zeros(rows.shape, np.uint8)
    for _ in range(FIT_ROUNDS):
        factors = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)[:, None]
        values = np.zeros((len(rows), len(bits)), np.float32)
        for count, columns in groups(bits):
            if count:
                span = _span(columns)
                found[:, span] = np.searchsorted(bounds(count), unscaled[:, span] * factors)
                values[:, span] = levels(count).take(found[:, span])
        values = values[:, used]
        own = (values * unscaled[:, used]) @ importance
        scales = np.maximum(own / np.maximum((values * values) @ importance, np.finfo(np.float32).tiny), 0)
    return found, scales


def packed_rows(found: NDArray[np.uint8], bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack numbers of levels, shape (rows, width), as ``RowCodes.packed``."""
    import numpy as np

    packed = np.empty((len(found), row_bytes(int(bits.sum(dtype=np.int64))) - SCALE_BYTES), np.uint8)
    for start in range(0, len(found), BLOCK_ROWS):
        some = found[start : start + BLOCK_ROWS]
        planes = [
            (some[:, columns] >> np.uint8(count - 1 - plane)) & np.uint8(1)
            for count, columns in groups(bits)
            for plane in range(count)
        ]
        packed[start : start + BLOCK_ROWS] = np.packbits(np.concatenate(planes, axis=1), axis=1, bitorder="little")
    return packed


def scale_codes(scales: NDArray[np.float32], unit: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Codes of scales relative to the largest one; 0 for 0, and 1 for all that are too small."""
    import numpy as np

    if not unit[0] > 0:
        return np.zeros(len(scales), np.uint8)
    with np.errstate(divide="ignore"):
        exponents = np.rint(np.log2(scales / unit[0]) * SCALE_STEPS)
    return np.where(scales > 0, np.clip(255 + exponents, 1, 255), 0).astype(np.uint8)


def scale_values(codes: NDArray[np.uint8], unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales from their codes."""
    import numpy as np

    table = np.exp2((np.arange(256) - 255) / SCALE_STEPS).astype(np.float32) * unit
    table[0] = 0
    found: NDArray[np.float32] = table.take(codes)
    return found
