"""Code books: entries for groups of columns of a matrix, found by k-means.

A row has the number of an entry for each group (Jégou, Douze, Schmid, "Product quantization for nearest neighbor
search", 2011), times a scale of the row. With two layers the entries of both are added, the second for what the first
leaves (Chen, Guan, Wang, "Approximate nearest neighbor search by residual vector quantization", 2010). Groups are those
of ``book_layout``: as in the parametric form of optimised product quantisation (Ge, He, Ke, Sun 2013), each is worth
about as many bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from common.compression.book_layout import Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCALE_STEPS, HEADROOM = 24, 0.5
"""Codes of a row's scale by which it doubles; octaves of scales above the largest one, as in ``row_grid``."""
SEED = 5
"""Of the rows that are taken, and of those at which k-means begins."""
LEAST_UNIT = 1e-20
"""Unit of rows that are all zeros."""
SAMPLED = 1 << 16
"""Most rows on which entries are found."""
PASSES = 12
"""Passes of k-means over them."""
FIT_ROUNDS = 3
"""Times that entries and scales of rows are fitted to each other; other numbers were not compared."""
COMPARED = 1 << 11
"""Rows that are compared with the entries of a group at a time."""


@dataclass(frozen=True, slots=True)
class Books:
    """Entries of all groups of columns.

    Attributes
    ----------
    entries
        float16 of shape (layers, 2 ** bits, width): those of a group are in its columns.
    starts
        First column of each group, int32 of shape (groups,), increasing from 0.
    unit
        The largest scale of a row, float32 of shape (1,); 0: not known yet (``fitted``).
    """

    entries: NDArray[np.float16]
    starts: NDArray[np.int32]
    unit: NDArray[np.float32]
    parts: tuple[tuple[slice, tuple[NDArray[np.float32], ...]], ...] = field(init=False, repr=False)
    """Columns of each group, and its entries in float32, layer by layer."""

    def __post_init__(self) -> None:
        import numpy as np

        stops = [*self.starts[1:].tolist(), self.width]
        spans = [slice(start, stop) for start, stop in zip(self.starts.tolist(), stops, strict=True)]
        parts = tuple((span, tuple(each[:, span].astype(np.float32) for each in self.entries)) for span in spans)
        object.__setattr__(self, "parts", parts)

    @classmethod
    def of(
        cls, rows: NDArray[np.float32], weights: NDArray[np.floating[Any]], layout: Layout, *, alike: bool = False
    ) -> Books:
        """Find entries with a small weighted squared error, of rows brought to one length times their lengths.

        Parameters
        ----------
        rows
            Shape (rows, width), with the columns of ``layout`` in its order.
        weights
            Weights of the columns' squared errors, shape (width,).
        layout
            The groups.
        alike
            True if an error counts by its share of the row's length.
        """
        import numpy as np

        random = np.random.default_rng(SEED)
        some = rows if len(rows) <= SAMPLED else rows[np.sort(random.choice(len(rows), SAMPLED, replace=False))]
        scales, roots = row_scales(some, weights), _roots(weights)
        each = (scales > 0).astype(np.float64) if alike else scales.astype(np.float64) ** 2
        entries = np.zeros((layout.layers, 1 << layout.bits, rows.shape[1]), np.float16)
        for start, stop in layout.spans:
            left = some[:, start:stop] * _inverse(scales)[:, None] * roots[start:stop]
            for layer in range(layout.layers):
                centres = _centres(left, each, 1 << layout.bits, random)
                entries[layer, :, start:stop] = centres / roots[start:stop]
                left -= centres.take(_nearest(left, centres), axis=0)
        return cls(entries, np.array(layout.starts, np.int32), np.zeros(1, np.float32))

    @property
    def layers(self) -> int:
        """Entries that are added in each group."""
        return len(self.entries)

    @property
    def bits(self) -> int:
        """Bits of the number of an entry."""
        return int(self.entries.shape[1] - 1).bit_length()

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return int(self.entries.shape[2])

    @property
    def count(self) -> int:
        """Entries of a row."""
        return self.layers * len(self.starts)

    @property
    def packed_bytes(self) -> int:
        """Bytes of a row without its scale."""
        return -(-self.count * self.bits // 8)

    def fitted(self, scales: NDArray[np.float32]) -> Books:
        """The same with a unit for these scales of rows."""
        import numpy as np

        unit = max(float(scales.max(initial=0)) * 2**HEADROOM, LEAST_UNIT)
        return replace(self, unit=np.array([unit], np.float32))

    def scale_codes(self, scales: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The nearest codes of scales, from 1; 0 for 0."""
        import numpy as np

        with np.errstate(divide="ignore"):
            places = 255 + np.rint(np.log2(scales / self.unit) * SCALE_STEPS)
        found: NDArray[np.uint8] = np.where(scales > 0, np.clip(places, 1, 255), 0).astype(np.uint8)
        return found

    def scale_values(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Scales from their codes."""
        import numpy as np

        table = (np.exp2((np.arange(256) - 255) / SCALE_STEPS) * self.unit).astype(np.float32)
        table[0] = 0
        found: NDArray[np.float32] = table.take(codes)
        return found

    def values_into(self, found: NDArray[np.uint8], scales: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Write rows into ``out``, shape (n, width), from numbers of entries, shape (n, count), and scales.

        Of a group the numbers of all its layers stand together.
        """
        for group, (columns, tables) in enumerate(self.parts):
            first = group * self.layers
            out[:, columns] = tables[0].take(found[:, first], axis=0)
            for layer, table in enumerate(tables[1:], 1):
                out[:, columns] += table.take(found[:, first + layer], axis=0)
        out *= scales[:, None]

    def values(self, found: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same as a new array."""
        import numpy as np

        out = np.empty((len(found), self.width), np.float32)
        self.values_into(found, scales, out)
        return out

    def nearest(
        self, rows: NDArray[np.float32], weights: NDArray[np.floating[Any]], scales: NDArray[np.float32]
    ) -> NDArray[np.uint8]:
        """Numbers of the entries with the least weighted squared error, uint8 of shape (rows, count).

        With two layers each is found again with the other as it is.
        """
        import numpy as np

        roots, found = _roots(weights), np.zeros((len(rows), self.count), np.uint8)
        for start in range(0, len(rows), COMPARED):
            span = slice(start, start + COMPARED)
            unscaled, some = rows[span] * _inverse(scales[span])[:, None], found[span]
            for group, (columns, tables) in enumerate(self.parts):
                first, left = group * self.layers, unscaled[:, columns].copy()
                for turn in range(self.layers):
                    for layer, table in enumerate(tables):
                        if turn:
                            left += table.take(some[:, first + layer], axis=0)
                        some[:, first + layer] = _nearest(left * roots[columns], table * roots[columns])
                        left -= table.take(some[:, first + layer], axis=0)
        return found

    def rescaled(
        self, rows: NDArray[np.float32], weights: NDArray[np.floating[Any]], found: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Scales with the least weighted squared error for these entries, shape (rows,)."""
        import numpy as np

        scales, importance = np.empty(len(rows), np.float32), weights.astype(np.float32)
        for start in range(0, len(rows), COMPARED):
            span = slice(start, start + COMPARED)
            values = self.values(found[span], np.ones(len(found[span]), np.float32))
            own, size = (values * rows[span]) @ importance, (values * values) @ importance
            scales[span] = own / np.maximum(size, np.finfo(np.float32).tiny)
        return np.maximum(scales, 0)

    def settled(
        self, rows: NDArray[np.float32], weights: NDArray[np.floating[Any]]
    ) -> tuple[Books, NDArray[np.uint8], NDArray[np.float32]]:
        """Entries of all rows, and their scales as they are stored; a unit for them if there is none yet."""
        scales = row_scales(rows, weights)
        for _ in range(FIT_ROUNDS):
            scales = self.rescaled(rows, weights, self.nearest(rows, weights, scales))
        books = self if self.unit.any() else self.fitted(scales)
        scales = books.scale_values(books.scale_codes(scales))
        return books, books.nearest(rows, weights, scales), scales


def row_scales(rows: NDArray[np.float32], weights: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Root of the weighted mean square of each row, shape (rows,)."""
    import numpy as np

    found = np.empty(len(rows), np.float32)
    shares = (weights / max(float(weights.sum()), float(np.finfo(np.float32).tiny))).astype(np.float32)
    for start in range(0, len(rows), COMPARED):
        some = rows[start : start + COMPARED]
        found[start : start + COMPARED] = np.sqrt((some * some) @ shares)
    return found


def _roots(weights: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Factors of the columns by which weighted errors are distances; columns without weight keep a little."""
    import numpy as np

    least = max(float(weights.max(initial=0)) * 1e-12, float(np.finfo(np.float32).tiny))
    found: NDArray[np.float32] = np.sqrt(np.maximum(weights, least)).astype(np.float32)
    return found


def _inverse(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / scale, and 0 where that is 0."""
    import numpy as np

    found: NDArray[np.float32] = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    return found


def _nearest(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.intp]:
    """Number of the nearest centre of each row, shape (rows,)."""
    import numpy as np

    found, half = np.empty(len(rows), np.intp), np.einsum("ij,ij->i", centres, centres) / 2
    for start in range(0, len(rows), COMPARED):
        found[start : start + COMPARED] = (rows[start : start + COMPARED] @ centres.T - half).argmax(1)
    return found


def _centres(
    rows: NDArray[np.float32], weights: NDArray[np.float64], count: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Centres by Lloyd's k-means of weighted rows; those that no row is nearest to go to the rows of largest error."""
    import numpy as np

    centres = rows[random.choice(len(rows), count, replace=len(rows) < count)].copy()
    for _ in range(PASSES):
        own = _nearest(rows, centres)
        sizes = np.bincount(own, weights, count)
        sums = np.stack([np.bincount(own, weights * column, count) for column in rows.T], 1)
        there = sizes > 0
        centres[there] = sums[there] / sizes[there, None]
        if not there.all():
            left = rows - centres.take(own, axis=0)
            worst = np.argsort(-weights * np.einsum("ij,ij->i", left, left), kind="stable")[: int((~there).sum())]
            centres[np.flatnonzero(~there)[: len(worst)]] = rows[worst]
    return centres
