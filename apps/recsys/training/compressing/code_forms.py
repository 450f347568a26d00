"""Rows of ``ials`` while they become codes, in either form: numbers of levels, or numbers of entries of code books."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.recsys.training.compressing import book_descent, discrete
from common.compression import row_grid
from common.compression.book_codes import BookCodes
from common.compression.books import Books
from common.compression.codes import BLOCK_ROWS
from common.compression.row_codes import RowCodes
from common.compression.row_grid import Grid

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(slots=True)
class Unfinished(ABC):
    """Rows that become codes.

    Attributes
    ----------
    found
        Numbers that are stored of each row, uint8 of shape (rows, numbers).
    scales
        Scales of the rows, shape (rows,).
    """

    found: NDArray[np.uint8]
    scales: NDArray[np.float32]

    @abstractmethod
    def decoded(self, rows: slice) -> NDArray[np.float32]:
        """The numbers of some rows, shape (n, width)."""

    @abstractmethod
    def descend(
        self, rows: slice, confidences: Any, users: NDArray[np.float32], hyper: Mapping[str, Any], *, threads: int
    ) -> None:
        """Solve some rows over the codes that there are; see ``discrete.descend``."""

    @abstractmethod
    def made(self) -> RowCodes | BookCodes:
        """The codes."""


@dataclass(slots=True)
class Levels(Unfinished):
    """Numbers of levels, of rows of classes."""

    kinds: NDArray[np.uint8]
    """Class of each row."""
    grid: Grid

    @classmethod
    def nearest(
        cls, rows: NDArray[np.float32], grid: Grid, importance: NDArray[np.float32], kinds: NDArray[np.uint8]
    ) -> Levels:
        """The nearest levels of all rows, under weights of the columns' squared errors."""
        import numpy as np

        found, scales = np.empty(rows.shape, np.uint8), np.empty(len(rows), np.float32)
        for start in range(0, len(rows), BLOCK_ROWS):
            span = slice(start, start + BLOCK_ROWS)
            found[span], scales[span] = row_grid.nearest(rows[span], grid, importance, kinds[span])
        grid = grid.fitted(scales, kinds)
        for start in range(0, len(rows), BLOCK_ROWS):
            span = slice(start, start + BLOCK_ROWS)
            found[span], scales[span] = grid.settled(rows[span], scales[span], kinds[span])
        return cls(found, scales, kinds, grid)

    def decoded(self, rows: slice) -> NDArray[np.float32]:
        """See ``Unfinished``."""
        return self.grid.decoded(self.found[rows], self.scales[rows], self.kinds[rows])

    def descend(
        self, rows: slice, confidences: Any, users: NDArray[np.float32], hyper: Mapping[str, Any], *, threads: int
    ) -> None:
        """See ``Unfinished``."""
        some = self.found[rows], self.scales[rows], self.kinds[rows]
        discrete.descend(confidences, *some, users, self.grid, hyper, threads=threads)

    def made(self) -> RowCodes:
        """See ``Unfinished``."""
        return RowCodes.made(self.found, self.scales, self.kinds, self.grid)


@dataclass(slots=True)
class Entries(Unfinished):
    """Numbers of entries of code books."""

    books: Books

    def decoded(self, rows: slice) -> NDArray[np.float32]:
        """See ``Unfinished``."""
        return self.books.values(self.found[rows], self.scales[rows])

    def descend(
        self, rows: slice, confidences: Any, users: NDArray[np.float32], hyper: Mapping[str, Any], *, threads: int
    ) -> None:
        """See ``Unfinished``."""
        some = self.found[rows], self.scales[rows]
        book_descent.descend(confidences, *some, users, self.books, hyper, threads=threads)

    def made(self) -> BookCodes:
        """See ``Unfinished``."""
        return BookCodes.made(self.found, self.scales, self.books)
