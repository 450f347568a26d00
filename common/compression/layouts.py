"""What a table of each kind is made of: pure arithmetic, for the planner that prices it and the table that is built.

Kinds that store each row (``full``, ``int8``, ``int4``) take what they take. All others are made to a wanted number of
bytes a row, weights and optimiser together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd, isqrt

from common.compression.row_formats import FORMATS

STATE_BYTES = 4
"""The optimiser's float32 number for each stored row."""
HASHES = 2
"""Stored rows that are summed up to a row of a ``hash`` table."""
CENTROIDS = 256
"""Values of a code of a ``pq`` table: one byte."""
PLACE_BYTES = 4
"""Where a ``frequency`` table keeps a row: int32."""
NARROWER = 4
"""How many times fewer numbers a seldom used row of a ``frequency`` table has."""
MOST_RANKS = 256
"""Of a ``tt`` table: beyond, its step takes longer than that of the table it stands for."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that are stored and trained, in a format of ``rows.FORMATS``."""

    kind: str
    rows: int
    width: int

    @property
    def weights(self) -> int:
        """Bytes of the numbers."""
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
        What is trained.
    fixed
        Bytes a row of what is known before and never trained: codes or places.
    """

    kind: str
    rows: int
    width: int
    parts: tuple[Part, ...]
    fixed: int = 0

    @property
    def weights(self) -> int:
        """Bytes of all numbers, the fixed ones too."""
        return self.fixed * self.rows + sum(part.weights for part in self.parts)

    @property
    def optimizer(self) -> int:
        """Bytes of the optimiser's state. There are no gradients but of the rows that a batch loads."""
        return sum(part.optimizer for part in self.parts)

    @property
    def total(self) -> int:
        """Bytes of all that training holds of the table."""
        return self.weights + self.optimizer

    @property
    def bytes_per_row(self) -> int:
        """The same for a row, rounded up."""
        return -(-self.total // self.rows)


def layout(kind: str, *, rows: int, width: int, row_bytes: int) -> Layout:
    """The layout of a table.

    Parameters
    ----------
    kind
        One of ``KINDS``.
    row_bytes
        What a row may take, for the kinds that can be made to it; the least that the kind can do where that is more.

    Raises
    ------
    ValueError
        If rows of half bytes do not fill whole ones.
    """
    if kind in FORMATS:
        if width * FORMATS[kind].bits % 8:
            raise ValueError(f"{width} numbers of {FORMATS[kind].bits} bits do not fill whole bytes")
        return Layout(kind, rows, width, (Part(kind, rows, width),))
    return _MADE[kind](rows, width, row_bytes * rows)


def _largest(made: Callable[[int], Layout], most: int, budget: int) -> Layout:
    """The layout of the largest size, from 1 to ``most``, that is within a budget; of 1 if none is."""
    low, high = 1, max(1, most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if made(middle).total <= budget else (low, middle - 1)
    return made(low)


def _hash(rows: int, width: int, budget: int) -> Layout:
    return _largest(lambda buckets: Layout("hash", rows, width, (Part("int8", buckets, width),)), rows, budget)


def _quotient_remainder(rows: int, width: int, budget: int) -> Layout:
    """By remainder and by quotient. The fewest rows altogether are by a divisor of about the root."""

    def made(divisor: int) -> Layout:
        return Layout("qr", rows, width, (Part("int8", divisor, width), Part("int8", -(-rows // divisor), width)))

    least = isqrt(rows - 1) + 1
    return _largest(lambda more: made(least + more - 1), rows - least + 1, budget)


def _tensor_train(rows: int, width: int, budget: int) -> Layout:
    """Two cores: a row is a matrix of ``first x last`` numbers, the product of two of a common rank."""
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
    """Each code picks the numbers of its share of the row; there are as many codes as divide the width."""
    centroids = min(CENTROIDS, rows)

    def made(codes: int) -> Layout:
        return Layout("pq", rows, width, (Part("full", codes * centroids, width // codes),), fixed=codes)

    possible = [codes for codes in range(1, width + 1) if gcd(codes, width) == codes]
    return _largest(lambda number: made(possible[number - 1]), len(possible), budget)


def _by_frequency(rows: int, width: int, budget: int) -> Layout:
    """Often used rows whole, seldom used ones of fewer numbers times a matrix."""
    narrow = max(1, width // NARROWER)

    def made(whole: int) -> Layout:
        parts = (Part("int8", whole, width), Part("int8", rows - whole, narrow), Part("full", narrow, width))
        return Layout("frequency", rows, width, parts, fixed=PLACE_BYTES)

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
"""What ``layout`` knows."""
