"""The levels that numbers of a matrix may have, in classes of rows, and the nearest ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.compression.codes import BLOCK_ROWS
from common.compression.row_levels import bounds, levels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCALE_STEPS = 24
"""Codes of a scale by which it doubles: rounding changes a row by 0.8 % (root mean square), and scales may differ by a
factor of 1,500; smaller ones are made as large."""
FIT_ROUNDS = 3
"""Times that codes and scales of rows are fitted to each other; other numbers were not compared."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The levels that numbers of a matrix may have.

    Attributes
    ----------
    bits
        Bits of each column in each class, uint8 of shape (classes, width).
    deviations
        Deviation of each column, float32 of shape (width,).
    firsts
        Smallest code of a scale in each class, uint8 of shape (classes,), increasing from 0.
    unit
        The largest scale, float32 of shape (1,).
    """

    bits: NDArray[np.uint8]
    deviations: NDArray[np.float32]
    firsts: NDArray[np.uint8]
    unit: NDArray[np.float32]

    @classmethod
    def alike(cls, bits: NDArray[np.uint8], deviations: NDArray[np.float32], largest: float) -> Grid:
        """One class of all rows, with the largest scale and the bits of each column."""
        import numpy as np

        return cls(bits[None], deviations, np.zeros(1, np.uint8), np.array([largest], np.float32))

    def taken(self, columns: NDArray[np.intp]) -> Grid:
        """The levels of some columns."""
        return Grid(self.bits[:, columns], self.deviations[columns], self.firsts, self.unit)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return int(self.bits.shape[1])

    @property
    def packed_bytes(self) -> NDArray[np.int64]:
        """Bytes of a row of each class without its scale, shape (classes,)."""
        import numpy as np

        found: NDArray[np.int64] = -(-self.bits.sum(1, dtype=np.int64) // 8)
        return found

    def classes(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Class of each row, by the codes of scales."""
        import numpy as np

        table = np.searchsorted(self.firsts, np.arange(256), side="right") - 1
        found: NDArray[np.uint8] = table.astype(np.uint8).take(codes)
        return found

    def limits(self, number: int) -> tuple[float, float]:
        """The smallest and largest scale in a class, but for 0."""
        last = int(self.firsts[number + 1]) - 1 if number + 1 < len(self.firsts) else 255
        first = max(1, int(self.firsts[number]))
        return tuple(float(scale_values(_code(code), self.unit)[0]) for code in (first, max(first, last)))  # type: ignore[return-value]

    def values(self, number: int, found: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
        """Numbers from their levels, shape (n, width), of rows of one class."""
        import numpy as np

        out = np.empty(found.shape, np.float32)
        for bits, columns in groups(self.bits[number]):
            out[:, span_of(columns)] = levels(bits).take(found[:, span_of(columns)])
        out *= self.deviations
        out *= scales[:, None]
        return out

    def decoded(
        self, found: NDArray[np.uint8], scales: NDArray[np.float32], kinds: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Numbers from their levels, shape (n, width), of rows of any classes."""
        import numpy as np

        out = np.empty(found.shape, np.float32)
        for number in np.flatnonzero(np.bincount(kinds)):
            own = np.flatnonzero(kinds == number)
            out[own] = self.values(int(number), found[own], scales[own])
        return out


def _code(code: int) -> NDArray[np.uint8]:
    import numpy as np

    return np.array([code], np.uint8)


def groups(bits: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield numbers of bits, from large to small and with 0, and the columns that have them."""
    import numpy as np

    for count in range(int(bits.max(initial=0)), -1, -1):
        columns = np.flatnonzero(bits == count)
        if len(columns):
            yield count, columns


def span_of(columns: NDArray[np.intp]) -> slice | NDArray[np.intp]:
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


def row_scales(rows: NDArray[np.float32], deviations: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root of the mean square of each row in deviations, shape (rows,): its scale before codes are fitted."""
    import numpy as np

    found = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        unscaled = rows[start : start + BLOCK_ROWS] / deviations
        found[start : start + BLOCK_ROWS] = np.sqrt(np.einsum("ij,ij->i", unscaled, unscaled) / rows.shape[1])
    return found


def nearest(
    rows: NDArray[np.float32], grid: Grid, weights: NDArray[np.float32], kinds: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Levels of some rows, and scales that fit them: each is the best for the other, in turn.

    Parameters
    ----------
    rows
        Shape (n, width).
    grid
        The levels.
    weights
        Weights of the columns' squared errors, shape (width,).
    kinds
        Class of each row, shape (n,).

    Returns
    -------
    tuple
        Numbers of levels, uint8 of shape (n, width), and scales within those of the classes, shape (n,).
    """
    import numpy as np

    found, scales = np.zeros(rows.shape, np.uint8), np.zeros(len(rows), np.float32)
    for number in range(len(grid.bits)):
        own = np.flatnonzero(kinds == number)
        if len(own):
            bounded = grid.limits(number) if len(grid.bits) > 1 else (0.0, float("inf"))
            found[own], scales[own] = _nearest(rows[own], grid.bits[number], grid.deviations, weights, bounded)
    return found, scales


def _nearest(
    rows: NDArray[np.float32],
    bits: NDArray[np.uint8],
    deviations: NDArray[np.float32],
    weights: NDArray[np.float32],
    bounded: tuple[float, float],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The same for rows of one class, with the smallest and largest scale."""
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
                span = span_of(columns)
                found[:, span] = np.searchsorted(bounds(count), unscaled[:, span] * factors)
                values[:, span] = levels(count).take(found[:, span])
        values = values[:, used]
        own = (values * unscaled[:, used]) @ importance
        scales = np.maximum(own / np.maximum((values * values) @ importance, np.finfo(np.float32).tiny), 0)
        scales = np.where(scales > 0, np.clip(scales, *bounded), 0).astype(np.float32)
    return found, scales


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
