"""The levels that numbers of a matrix may have, in classes of rows, and the nearest ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from common.compression.codes import BLOCK_ROWS
from common.compression.row_levels import bounds, levels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCALE_STEPS = 24
"""Codes of a scale by which it doubles where there is one class: rounding changes a row by 0.8 % (root mean square),
and scales may differ by a factor of 1,500; smaller ones are made as large."""
OCTAVES, ABOVE = 1.5, 1.0
"""Octaves of scales that each of several classes has, and how many of them above its median. Of a thousand items of
Gowalla in classes of half an octave, solved over their levels, all but two are from 0.4 below to 0.9 above."""
LEAST_UNIT = 1e-20
"""Unit of a class of zeros."""
HEADROOM = 0.5
"""Octaves of scales above the largest one where there is one class: solving again makes some larger."""
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
    units
        The largest scale in each class, float32 of shape (classes,); 0: not known yet (``fitted``).
    """

    bits: NDArray[np.uint8]
    deviations: NDArray[np.float32]
    firsts: NDArray[np.uint8]
    units: NDArray[np.float32]

    @classmethod
    def of(cls, bits: NDArray[np.uint8], deviations: NDArray[np.float32]) -> Grid:
        """Levels by the bits of each column in each class, shape (classes, width), or in the only class."""
        import numpy as np

        bits = np.atleast_2d(bits)
        firsts = (256 * np.arange(len(bits)) // len(bits)).astype(np.uint8)
        return cls(bits, deviations, firsts, np.zeros(len(bits), np.float32))

    def fitted(self, scales: NDArray[np.float32], kinds: NDArray[np.uint8]) -> Grid:
        """The same with units for scales of rows of these classes, shape (rows,) each."""
        import numpy as np

        units = np.full(len(self.bits), LEAST_UNIT, np.float32)
        for number in range(len(units)):
            own = scales[kinds == number] if len(units) > 1 else scales
            own = own[own > 0]
            if len(own):
                units[number] = own.max() * 2**HEADROOM if len(units) == 1 else np.median(own) * 2**ABOVE
        return replace(self, units=units)

    def taken(self, columns: NDArray[np.intp]) -> Grid:
        """The levels of some columns."""
        return Grid(self.bits[:, columns], self.deviations[columns], self.firsts, self.units)

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

    def _codes(self, number: int) -> tuple[int, int, float]:
        """Smallest and largest code of a class but for 0, and codes by which a scale doubles."""
        last = int(self.firsts[number + 1]) - 1 if number + 1 < len(self.firsts) else 255
        first = max(1, int(self.firsts[number]))
        return first, last, SCALE_STEPS if len(self.firsts) == 1 else (last - first + 1) / OCTAVES

    def scale_codes(self, scales: NDArray[np.float32], kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The nearest codes of scales of rows of these classes; of the first class 0 for 0."""
        import numpy as np

        out = np.zeros(len(scales), np.uint8)
        for number in range(len(self.bits)):
            first, last, steps = self._codes(number)
            own = np.flatnonzero(kinds == number)
            with np.errstate(divide="ignore"):
                places = last + np.rint(np.log2(scales[own] / self.units[number]) * steps)
            codes = np.clip(places, first, last)
            out[own] = np.where(scales[own] > 0, codes, 0 if number == 0 else first)
        return out

    def scale_values(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Scales from their codes."""
        import numpy as np

        table = np.zeros(256, np.float32)
        for number, unit in enumerate(self.units):
            first, last, steps = self._codes(number)
            table[first : last + 1] = np.exp2((np.arange(first, last + 1) - last) / steps) * unit
        found: NDArray[np.float32] = table.take(codes)
        return found

    def settled(
        self, rows: NDArray[np.float32], scales: NDArray[np.float32], kinds: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Scales as they are stored, and the levels of some rows that are nearest with them."""
        import numpy as np

        stored = self.scale_values(self.scale_codes(scales, kinds))
        factors = np.divide(1, stored, out=np.zeros_like(stored), where=stored > 0)
        unscaled, found = rows / self.deviations * factors[:, None], np.zeros(rows.shape, np.uint8)
        for number in np.flatnonzero(np.bincount(kinds)):
            own = np.flatnonzero(kinds == number)
            for bits, columns in groups(self.bits[number]):
                if bits:
                    found[np.ix_(own, columns)] = np.searchsorted(bounds(bits), unscaled[np.ix_(own, columns)])
        return found, stored

    def chosen(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The class whose rows are about as long, for each row, shape (rows,)."""
        import numpy as np

        with np.errstate(divide="ignore"):
            lengths = np.log2(row_scales(rows, self.deviations))
        usual = np.log2(self.units) - ABOVE
        found: NDArray[np.uint8] = np.abs(np.maximum(lengths, -1e9)[:, None] - usual).argmin(1).astype(np.uint8)
        return found

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
        Numbers of levels, uint8 of shape (n, width), and scales, shape (n,).
    """
    import numpy as np

    found, scales = np.zeros(rows.shape, np.uint8), np.zeros(len(rows), np.float32)
    for number in range(len(grid.bits)):
        own = np.flatnonzero(kinds == number)
        if len(own):
            found[own], scales[own] = _nearest(rows[own], grid.bits[number], grid.deviations, weights)
    return found, scales


def _nearest(
    rows: NDArray[np.float32],
    bits: NDArray[np.uint8],
    deviations: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The same for rows of one class."""
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
    return found, scales
