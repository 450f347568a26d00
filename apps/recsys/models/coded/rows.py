"""Item vectors in memory as codes of a few bits, decoded some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from apps.recsys.models.scan.rows import Rows, row_lengths
from common.compression.book_codes import BookCodes
from common.compression.row_codes import DECODED_ROWS, RowCodes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class CodedRows(Rows):
    """Rows of a matrix that are codes.

    Parameters
    ----------
    codes
        The codes.
    """

    def __init__(self, codes: RowCodes | BookCodes) -> None:
        super().__init__(len(codes), codes.width)
        self.codes = codes

    def __getitem__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        return self._scaled(self.codes.decode(rows))

    def blocks(self) -> Iterator[tuple[slice | NDArray[np.intp], NDArray[np.float32]]]:
        """Yield all rows, ``DECODED_ROWS`` at a time, those of most bits first; a block is valid until the next one."""
        workspace = self.codes.workspace(min(DECODED_ROWS, max(1, len(self))))
        for rows, number, places in self.codes.stored_order():
            for start in range(0, places.stop - places.start, DECODED_ROWS):
                count = min(DECODED_ROWS, places.stop - places.start - start)
                some = rows[start : start + count] if not isinstance(rows, slice) else _part(rows, start, count)
                out = workspace[:count]
                self.codes.decode_places(number, some, _part(places, start, count), out)
                yield some, self._scaled(out)

    def _scaled(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._unit:
            vectors /= row_lengths(vectors)[:, None]
        return vectors


def _part(rows: slice, start: int, count: int) -> slice:
    return slice(rows.start + start, rows.start + start + count)
