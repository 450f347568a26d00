"""Stored parts of a table of each kind, by pure arithmetic, for the planner's footprint and for building the table.

The size of kinds that store each row (``full``, ``int8``, ``int4``) is given by rows and width. All others are made to
fit a number of bytes per row, weights and optimiser state together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd, isqrt

from common.compression.row_formats import FORMATS

STATE_BYTES = 4
"""The optimiser's float32 number for each stored row."""
HASHES = 2
"""Stored rows that are added up to a row of a ``hash`` table."""
CENTROIDS = 256
"""Number of values of a code of a ``pq`` table: one byte."""
RANK_BYTES = 4
"""A row's rank by frequency in a ``frequency`` table: int32."""
NARROWER = 4
"""Width of a ``frequency`` table divided by that of its infrequent rows."""
MOST_RANKS = 256
"""Largest rank of a ``tt`` table; beyond it a step takes longer than that of the uncompressed table."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that are stored and trained, in a format of ``row_formats.FORMATS``."""

    kind: str
    rows: int
    width: int

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.rows * FORMATS[self.kind].bytes_per_row(self.width)

    @property
    def optimizer(self) -> int:
        """Bytes of the optimiser's state."""
        return self.rows * STATE_BYTES


@dataclass(frozen=True, slots=True)
class Layout:
    """A table of ``rows`` vectors of ``width`` numbers.

    Attributes
    ----------
    parts
        Stored rows that are trained.
    fixed
        Bytes per row of the fixed input, which is not trained: codes or ranks.
    """

    kind: str
    rows: int
    width: int
    parts: tuple[Part, ...]
    fixed: int = 0

    @property
    def weights(self) -> int:
        """Bytes of all weights and of the fixed input."""
        return self.fixed * self.rows + sum(part.weights for part in self.parts)

    @property
    def optimizer(self) -> int:
        """Bytes of the optimiser's state. Only rows of a batch have gradients."""
        return sum(part.optimizer for part in self.parts)

    @property
    def total(self) -> int:
        """Bytes that the table takes in training, without its gradients."""
        return self.weights + self.optimizer

    @property
    def bytes_per_row(self) -> int:
        """``total`` per row, rounded up."""
        return -(-self.total // self.rows)


def layout(kind: str, *, rows: int, width: int, row_bytes: int) -> Layout:
    """Return the layout of a table.

    Parameters
    ----------
    kind
        One of ``KINDS``.
    row_bytes
        Bytes per row, for the kinds whose size can be chosen. If the kind's smallest size is larger, that is taken.

    Raises
    ------
    ValueError
        An odd number of 4-bit codes does not fill whole bytes.

    Examples
    --------
    >>> layout("int8", rows=1000, width=64, row_bytes=0).bytes_per_row
    70
    >>> layout("hash", rows=1000, width=64, row_bytes=38).bytes_per_row
    38
    """
    if kind in FORMATS:
        if width * FORMATS[kind].bits % 8:
            raise ValueError(f"{width} numbers of {FORMATS[kind].bits} bits do not fill whole bytes")
        return Layout(kind, rows, width, (Part(kind, rows, width),))
    return _MADE[kind](rows, width, row_bytes * rows)


def _largest(made: Callable[[int], Layout], most: int, budget: int) -> Layout:
    """Return the layout of the largest size from 1 to ``most`` within ``budget`` bytes; that of size 1 if none is."""
    low, high = 1, max(1, most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if made(middle).total <= budget else (low, middle - 1)
    return made(low)


def _hash(rows: int, width: int, budget: int) -> Layout:
    return _largest(lambda buckets: Layout("hash", rows, width, (Part("int8", buckets, width),)), rows, budget)


def _quotient_remainder(rows: int, width: int, budget: int) -> Layout:
    """Choose the divisor; one near the square root of the rows gives the fewest stored rows."""

    def made(divisor: int) -> Layout:
        return Layout("qr", rows, width, (Part("int8", divisor, width), Part("int8", -(-rows // divisor), width)))

    least = isqrt(rows - 1) + 1
    return _largest(lambda more: made(least + more - 1), rows - least + 1, budget)


def _tensor_train(rows: int, width: int, budget: int) -> Layout:
    """Choose the rank; a row is a matrix of ``first x last`` numbers, the product of two matrices of that rank."""
    first = next(size for size in range(isqrt(width), 0, -1) if width % size == 0)
    count = isqrt(rows - 1) + 1

    def made(rank: int) -> Layout:
        others = -(-rows // count)
        return Layout(
            "tt", rows, width, (Part("full", others, first * rank), Part("full", count, rank * (width // first)))
        )

    return _largest(made, MOST_RANKS, budget)


def _low_rank(rows: int, width: int, budget: int) -> Layout:
    def made(rank: int) -> Layout:
        return Layout("lowrank", rows, width, (Part("int8", rows, rank), Part("full", rank, width)))

    return _largest(made, width, budget)


def _product_codes(rows: int, width: int, budget: int) -> Layout:
    """Choose the number of codes, a divisor of the width; each code stands for its share of the row."""
    centroids = min(CENTROIDS, rows)

    def made(codes: int) -> Layout:
        return Layout("pq", rows, width, (Part("full", codes * centroids, width // codes),), fixed=codes)

    possible = [codes for codes in range(1, width + 1) if gcd(codes, width) == codes]
    return _largest(lambda number: made(possible[number - 1]), len(possible), budget)


def _by_frequency(rows: int, width: int, budget: int) -> Layout:
    """Choose the number of full rows; infrequent rows are narrower and multiplied with a matrix."""
    narrow = max(1, width // NARROWER)

    def made(whole: int) -> Layout:
        parts = (Part("int8", whole, width), Part("int8", rows - whole, narrow), Part("full", narrow, width))
        return Layout("frequency", rows, width, parts, fixed=RANK_BYTES)

    return _largest(made, rows - 1, budget)


_MADE: dict[str, Callable[[int, int, int], Layout]] = {
    "hash": _hash,
    "qr": _quotient_remainder,
    "tt": _tensor_train,
    "lowrank": _low_rank,
    "pq": _product_codes,
    "frequency": _by_frequency,
}
KINDS = (*FORMATS, *_MADE)
"""All table kinds."""
