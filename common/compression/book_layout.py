"""Columns of a matrix in groups that share a code book each, by how many bits each column is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCALE_BYTES = 1
"""Bytes of a row's scale."""
NUMBER_BYTES = 2
"""Bytes of a number of an entry, a float16."""
MOST_BITS, LEAST_BITS = 8, 1
"""Bits of the number of an entry."""
BOOK_SHARE = 8
"""Entries take at most this part of the bytes of all rows, where fewer bits a number can do that."""
HALVINGS = 100
LEAST_WORTH = 0.02
"""Bits of a column that is left out: no entry tells its numbers apart."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Groups of columns.

    Attributes
    ----------
    columns
        The columns that have entries, group by group.
    starts
        Place of each group's first column among them.
    bits
        Bits of the number of an entry.
    layers
        Entries that are added in each group.
    """

    columns: NDArray[np.intp] | range
    starts: tuple[int, ...]
    bits: int
    layers: int

    @property
    def spans(self) -> Iterator[tuple[int, int]]:
        """First and last column of each group, among ``columns``."""
        return zip(self.starts, (*self.starts[1:], len(self.columns)), strict=True)

    def bytes_of(self, rows: int) -> int:
        """Bytes of a row of so many, with its scale and its share of the entries, rounded up."""
        packed = -(-len(self.starts) * self.layers * self.bits // 8)
        books = self.layers * (1 << self.bits) * len(self.columns) * NUMBER_BYTES
        return packed + SCALE_BYTES + -(-books // max(1, rows))


def smallest_bytes(width: int, *, rows: int, layers: int) -> int:
    """Bytes of a row for which there are groups whatever the variances are: one group, and two entries for each layer.

    Examples
    --------
    >>> smallest_bytes(128, rows=10_000, layers=1)
    3
    """
    one = Layout(columns=range(width), starts=(0,), bits=LEAST_BITS, layers=layers)
    return one.bytes_of(rows)


def layout(
    variances: NDArray[np.floating[Any]], *, size: int, rows: int, layers: int, last: bool = False
) -> Layout | None:
    """Groups of columns with as many entries as bytes allow.

    Parameters
    ----------
    variances
        Weighted variance of each column, shape (width,).
    size
        Most bytes of a row with its scale and its share of the entries.
    rows
        How many rows share the entries.
    layers
        Entries that are added in each group.
    last
        True if the last column has entries in any case, and stays the last one.

    Returns
    -------
    Layout | None
        ``None`` where no groups are so small.
    """
    width = len(variances)
    for bits in range(MOST_BITS, LEAST_BITS - 1, -1):
        if bits > LEAST_BITS and layers * (NUMBER_BYTES << bits) * width * BOOK_SHARE > size * rows:
            continue
        for groups in range(min(width, 8 * size // (bits * layers)), 0, -1):
            made = _made(variances, groups, bits, layers, last=last)
            if made.bytes_of(rows) <= size:
                return made
    return None


def _made(variances: NDArray[np.floating[Any]], groups: int, bits: int, layers: int, *, last: bool) -> Layout:
    """At most so many groups, whose columns are worth as many bits each, as far as that can be."""
    import numpy as np

    worth = worths(variances, groups * bits * layers)
    members: list[list[int]] = [[] for _ in range(groups)]
    load, final = np.zeros(groups), len(worth) - 1
    if last:
        worth[final] = max(worth[final], 2 * LEAST_WORTH)
    for column in np.argsort(-worth, kind="stable"):
        if worth[column] > LEAST_WORTH or not load.any():
            group = int(load.argmin())
            members[group].append(int(column))
            load[group] += max(worth[column], LEAST_WORTH)
    there = [each for each in members if each]
    if last:
        there.sort(key=lambda each: final in each)
        there[-1].sort(key=lambda column: column == final)
    starts = np.cumsum([0, *map(len, there)])[:-1]
    return Layout(np.concatenate([np.array(each, np.intp) for each in there]), tuple(starts.tolist()), bits, layers)


def worths(variances: NDArray[np.floating[Any]], total: int) -> NDArray[np.float64]:
    """Bits of each column, of which some are 0: all that are not leave the same error (reverse water-filling).

    Examples
    --------
    >>> worths(np.array([16.0, 4.0, 0.001]), 3)
    array([2., 1., 0.])
    """
    import numpy as np

    each = np.maximum(variances.astype(np.float64), 1e-300)
    low, high = 1e-300, float(each.max())
    found = np.zeros(len(each))
    for _ in range(HALVINGS):
        error = float(np.sqrt(low) * np.sqrt(high))
        found = np.maximum(0, np.log2(each / error) / 2)
        if found.sum() > total:
            low = error
        else:
            high = error
    return found
