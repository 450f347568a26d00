"""Item vectors by rows: stand-ins for the matrix where a model is asked about few items at a time, or keeps codes."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.models import weights
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 1 << 10
"""Rows that are read at a time in a pass over all."""
GATHERED = 1 << 9
"""Single rows that are read at a time: their text exists three times."""
LEAST_LENGTH = 1e-12
"""Lower bound on a vector's length before it divides."""


class Rows(ABC):
    """Rows of a matrix that is not in memory as float32.

    Parameters
    ----------
    rows, columns
        Its shape.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.shape = (rows, columns)
        self._unit = False

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """The vectors of some rows, a new array of shape (n, factors)."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[slice | NDArray[np.intp], NDArray[np.float32]]]:
        """Yield all rows, some at a time, and which they are."""

    def normalise(self) -> Lengths:
        """Divide every row by its length from now on; returns the lengths."""
        self._unit = True
        return Lengths(self)

    def lengths(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Lengths of some rows as they are stored, shape (n,)."""
        self._unit, unit = False, self._unit
        try:
            return row_lengths(self[rows])
        finally:
            self._unit = unit

    def gramian(self) -> NDArray[np.float32]:
        """Product of the matrix with itself, shape (factors, factors)."""
        import numpy as np

        total = np.zeros((self.shape[1], self.shape[1]), np.float32)
        for _, block in self.blocks():
            total += block.T @ block
        return total


class ItemRows(Rows):
    """Rows of a matrix in ``weights.safetensors``, as float32. Reading one takes a microsecond from the page cache.

    Parameters
    ----------
    path
        The file.
    name
        Name of the tensor: float32, or codes of 8 or 4 bits with a scale for each row.

    Raises
    ------
    BadInput
        As ``weights.read``.
    """

    def __init__(self, path: Path, name: str = weights.ITEMS) -> None:
        import numpy as np

        (rows, columns), self._kind, self._offset = weights.entry(path, name)
        self._packed = self._kind == np.uint8
        self._scales = None if self._kind.kind == "f" else weights.tensor(path, f"{name}.scales")
        self._bytes = columns * self._kind.itemsize
        self._stream = path.open("rb")
        self._columns: NDArray[np.float32] | None = None
        self._factors: Callable[[NDArray[Any] | slice], NDArray[np.float32]] | None = None
        super().__init__(rows, columns * (2 if self._packed else 1))

    def __getitem__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """The vectors of some rows, a new array of shape (n, factors).

        Raises
        ------
        BadInput
            The file is shorter than it was, or has numbers that are not finite.
        """
        import numpy as np

        out = np.empty((len(rows), self.shape[1]), np.float32)
        file, size = self._stream.fileno(), self._bytes
        for start in range(0, len(rows), GATHERED):
            some = rows[start : start + GATHERED]
            places = (self._offset + size * some.astype(np.int64)).tolist()
            self._decode(b"".join([os.pread(file, size, place) for place in places]), some, out[start:])
        return out

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield all rows, ``BLOCK`` at a time; raises as ``__getitem__``."""
        import numpy as np

        for start in range(0, len(self), BLOCK):
            span = slice(start, min(start + BLOCK, len(self)))
            data = os.pread(
                self._stream.fileno(), self._bytes * (span.stop - start), self._offset + start * self._bytes
            )
            out = np.empty((span.stop - start, self.shape[1]), np.float32)
            self._decode(data, span, out)
            yield span, out

    def scale(
        self, columns: NDArray[np.float32], factors: Callable[[NDArray[Any] | slice], NDArray[np.float32]]
    ) -> None:
        """Multiply the columns by numbers, shape (factors,), and the rows by those that ``factors`` returns for some
        of them, from now on."""
        self._columns, self._factors = columns, factors

    def _decode(self, data: bytes, rows: NDArray[Any] | slice, room: NDArray[np.float32]) -> None:
        """Write rows as float32 into the first ones of ``room``."""
        import numpy as np

        count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        if len(data) != count * self._bytes:
            raise BadInput(f"{self._stream.name}: is shorter than it was", public="weights unreadable")
        stored = np.frombuffer(data, self._kind).reshape(count, -1)
        out = room[:count]
        if self._packed:
            weights.unpack(stored, out)
        else:
            out[:] = stored
        if self._scales is not None:
            out *= self._scales[rows].astype(np.float32)[:, None]
        if self._columns is not None and self._factors is not None:
            out *= self._columns
            out *= self._factors(rows)[:, None]
        if self._unit:
            out /= row_lengths(out)[:, None]
        if not np.isfinite(out).all():
            raise BadInput(f"{self._stream.name}: has numbers that are not finite", public="weights unreadable")


class Lengths:
    """Lengths of rows, by their numbers."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __getitem__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        return self._rows.lengths(rows)


def row_lengths(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lengths of vectors, at least ``LEAST_LENGTH``, shape (n,)."""
    import numpy as np

    found: NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return np.maximum(found, np.float32(LEAST_LENGTH))
