"""Items that pass a filter which is asked for again, with the codes of the longest ones of them in memory.

Where a tenth of the items pass, most of what a scan reads are codes of others, and it goes ten times as far. The codes
of those that passed are kept from the first scan on, so that the next one reads them only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ITEMS = 49_152
"""Most items whose codes are kept for a filter. The longest of a hundred lists needs 35,000 of the items that pass (a
million items of 128 factors; filters that a tenth and three tenths of them pass)."""


def choice_bytes(items: int, width: int) -> int:
    """Memory of a filter's items of ``width`` numbers: codes, three numbers and a row each.

    Examples
    --------
    >>> choice_bytes(1_000_000, 128) >> 10
    6912
    """
    return min(ITEMS, items) * (width + 16)


class Choice:
    """Items that pass a filter.

    Parameters
    ----------
    mask
        Makes the mask of the items that pass, shape (items,).
    """

    def __init__(self, mask: Callable[[], NDArray[np.bool_]]) -> None:
        self.mask = mask
        self.total: int | None = None
        """Items that pass; ``None`` until a mask was made."""
        self.count, self.tiles = 0, 0
        """Items that are kept; tiles of the catalogue, from the first on, of which all that pass are kept."""
        self.full = False
        """True once no more are kept."""
        self._arrays: tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int8]] | None = None

    def add(self, items: NDArray[np.int32], numbers: NDArray[np.float32], codes: NDArray[np.int8]) -> None:
        """Keep the items of the next tile that pass, with their numbers and codes, (n,), (n, 3) and (n, width)."""
        import numpy as np

        end = self.count + len(items)
        if self.full or end > ITEMS:
            self.full = True
            return
        if self._arrays is None:  # pages of it are taken as they are filled
            width = codes.shape[1]
            self._arrays = (
                np.empty(ITEMS, np.int32),
                np.empty((ITEMS, numbers.shape[1]), np.float32),
                np.empty((ITEMS, width), np.int8),
            )
        span = slice(self.count, end)
        self._arrays[0][span], self._arrays[1][span], self._arrays[2][span] = items, numbers, codes
        self.count, self.tiles = end, self.tiles + 1

    def kept(self, span: slice) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int8]]:
        """Some of the items that are kept, which are in the order of their lengths, as ``add`` took them."""
        assert self._arrays is not None
        items, numbers, codes = self._arrays
        return items[span], numbers[span], codes[span]
