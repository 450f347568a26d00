"""Levels of normal numbers, and bits that are shared out among columns and classes of rows by what they save."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

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
HALVINGS = 60
"""Times that the interval is halved in which the least worthwhile gain of a bit is sought."""


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


def shared_bits(
    weights: NDArray[np.floating[Any]], budget: int, counts: NDArray[np.integer[Any]] | None = None
) -> NDArray[np.uint8]:
    """Share bits out among columns, or among columns of classes of rows.

    A bit is given where it lowers the weighted squared error of a row most, in any class (reverse water-filling in
    whole bits). Rows of a class take whole bytes, which are filled.

    Parameters
    ----------
    weights
        Weighted variance of each column, which is the error without a bit, shape (width,), or (classes, width).
    budget
        Most bytes of all rows; of one row without ``counts``.
    counts
        Rows of each class, shape (classes,).

    Returns
    -------
    NDArray
        Bits of each column, shaped as ``weights``: as many as fit, at most ``MOST_BITS`` each.

    Examples
    --------
    >>> shared_bits(np.array([9.0, 1.0, 0.01]), 1)
    array([5, 3, 0], dtype=uint8)
    >>> shared_bits(np.array([[100.0, 100.0], [1.0, 1.0]]), 30, np.array([10, 20]))
    array([[4, 4],
           [4, 4]], dtype=uint8)
    """
    import numpy as np

    gains = np.array(ERRORS[:-1]) - np.array(ERRORS[1:])
    each = np.atleast_2d(weights).astype(np.float64)[:, :, None] * gains
    each *= 1 + 1e-9 * np.arange(each.shape[1])[:, None]  # of columns that gain the same, some may get a bit
    rows = np.ones(1) if counts is None else counts
    low, high, found = 0.0, float(each.max(initial=0)) * 2, np.zeros(each.shape[:2], np.int64)
    for _ in range(HALVINGS if high > 0 else 0):
        least = (low + high) / 2 if low == 0 else float(np.sqrt(low * high))
        tried = _filled((each > least).sum(2), each)
        if rows @ _bytes(tried) <= budget:
            high, found = least, tried
        else:
            low = least
    found = _spent(found, each, rows, budget)
    return found.reshape(weights.shape).astype(np.uint8)


def _bytes(bits: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Bytes of a row of each class."""
    found: NDArray[np.integer[Any]] = -(-bits.sum(1) // 8)
    return found


def _filled(bits: NDArray[np.integer[Any]], gains: NDArray[np.float64]) -> NDArray[np.integer[Any]]:
    """Give further bits where they gain most, until each class has whole bytes."""
    return bits + _further(bits, gains, -bits.sum(1) % 8)[0]


def _spent(
    bits: NDArray[np.integer[Any]], gains: NDArray[np.float64], rows: NDArray[Any], budget: int
) -> NDArray[np.integer[Any]]:
    """Give further bytes to classes that fit in what is left, the byte that gains most a row first.

    Columns of a large class that gain about the same get a bit together, or none does: of Gowalla in 34 bytes a row,
    iALS of 256 factors would leave half a byte a row.
    """
    import numpy as np

    left = budget - int(rows @ _bytes(bits))
    more, gained = _further(bits, gains, np.full(len(bits), 8))
    while True:
        fits = (rows <= left) & (more.sum(1) > 0) & (rows > 0)
        if not fits.any():
            return bits
        best = int(np.where(fits, gained, -1).argmax())
        left -= int(rows[best]) * int(_bytes(bits[[best]] + more[[best]])[0] - _bytes(bits[[best]])[0])
        bits[best] += more[best]
        more[[best]], gained[[best]] = _further(bits[[best]], gains[[best]], np.full(1, 8))


def _further(
    bits: NDArray[np.integer[Any]], gains: NDArray[np.float64], counts: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.integer[Any]], NDArray[np.float64]]:
    """So many further bits of each class where they gain most, shape (classes, width), and what they gain together."""
    import numpy as np

    more, total, every = np.zeros_like(bits), np.zeros(len(bits)), np.arange(bits.shape[1])
    for number, count in enumerate(counts):
        for _ in range(int(count)):
            own = bits[number] + more[number]
            gained = np.where(own < MOST_BITS, gains[number][every, np.minimum(own, MOST_BITS - 1)], -1.0)
            column = int(gained.argmax())
            if gained[column] <= 0:
                break
            more[number, column] += 1
            total[number] += gained[column]
    return more, total
