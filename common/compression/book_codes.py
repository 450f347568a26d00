"""Rows as numbers of entries of code books, with a scale a row: product codes, and residual ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.compression.books import Books
from common.compression.codes import BLOCK_ROWS, CodedMatrix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNPACKED = 256
"""Rows whose numbers of entries are unpacked at a time, as in ``row_codes``."""


@dataclass(frozen=True, slots=True)
class BookCodes(CodedMatrix):
    """Rows as entries of code books.

    Attributes
    ----------
    packed
        Numbers of entries, uint8 of shape (rows * bytes,): of a row the lowest bit of the first one comes first.
    scales
        Code of each row's scale, uint8 of shape (rows,).
    books
        The entries.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    books: Books

    @classmethod
    def made(cls, found: NDArray[np.uint8], scales: NDArray[np.float32], books: Books) -> BookCodes:
        """The codes of numbers of entries, shape (rows, count), and of scales, shape (rows,)."""
        import numpy as np

        packed = np.empty((len(found), books.packed_bytes), np.uint8)
        for start in range(0, len(found), BLOCK_ROWS):
            some = found[start : start + BLOCK_ROWS]
            bits = np.unpackbits(some[:, :, None], axis=2, count=books.bits, bitorder="little")
            packed[start : start + BLOCK_ROWS] = np.packbits(bits.reshape(len(some), -1), axis=1, bitorder="little")
        return cls(packed.ravel(), books.scale_codes(scales), books)

    @classmethod
    def of(cls, rows: NDArray[np.float32], weights: NDArray[np.floating[Any]], books: Books) -> BookCodes:
        """Encode a matrix with the columns of ``books``: the nearest entries under weights of the squared errors."""
        books, found, scales = books.settled(rows, weights)
        return cls.made(found, scales, books)

    def __len__(self) -> int:
        return len(self.scales)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.books.width

    @property
    def expected_bytes(self) -> int:
        """Bytes of the packed rows."""
        return len(self) * self.books.packed_bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes of the rows with their scales, and of the entries."""
        return len(self.packed) + len(self.scales) + int(self.books.entries.nbytes)

    @property
    def rows(self) -> NDArray[np.uint8]:
        """Packed rows: a view of shape (rows, bytes)."""
        return self.packed.reshape(len(self), self.books.packed_bytes)

    def taken(self, rows: NDArray[np.integer[Any]]) -> BookCodes:
        """The codes of some rows."""
        return BookCodes(self.rows[rows].ravel(), self.scales[rows], self.books)

    def with_rows(self, rows: NDArray[np.float32]) -> BookCodes:
        """The same with the nearest codes of further rows after all others, shape (n, width)."""
        import numpy as np

        more = BookCodes.of(rows, np.ones(self.width), self.books)
        return BookCodes(
            np.concatenate([self.packed, more.packed]), np.concatenate([self.scales, more.scales]), self.books
        )

    def stored_order(self) -> Iterator[tuple[slice, int, slice]]:
        """All rows, as ``RowCodes.stored_order`` yields those of a class."""
        yield slice(0, len(self)), 0, slice(0, len(self))

    def decode_into(self, rows: slice | NDArray[Any], out: NDArray[np.float32]) -> None:
        """Decode some rows; see ``CodedMatrix``."""
        import numpy as np

        stored, scales, books = self.rows[rows], self.books.scale_values(self.scales[rows]), self.books
        for start in range(0, len(stored), UNPACKED):
            span = slice(start, start + UNPACKED)
            numbers = stored[span]
            if books.bits < 8:
                bits = np.unpackbits(numbers, axis=1, count=books.count * books.bits, bitorder="little")
                numbers = np.packbits(bits.reshape(len(numbers), books.count, -1), axis=2, bitorder="little")[:, :, 0]
            books.values_into(numbers, scales[span], out[span])

    def decode_places(
        self, number: int, rows: slice | NDArray[Any], places: slice | NDArray[Any], out: NDArray[np.float32]
    ) -> None:
        """Decode some rows, of which there is one class: see ``RowCodes.decode_places``."""
        self.decode_into(places, out)
