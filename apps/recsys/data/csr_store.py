"""Interactions as a CSR matrix on disk: a row of items per user, read by rows and never mapped into memory.

The files are ``NAME.indptr.npy`` (int64, rows + 1), ``NAME.items.npy`` (int32) and, if there are weights,
``NAME.values.npy`` (float32), in NumPy's format. Only ``indptr`` stays in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


BLOCK = 1 << 16
"""Interactions read at a time in a pass over all of them."""


class NpyWriter:
    """Writes a one-dimensional ``.npy`` file piece by piece; the length in its header is set at the end.

    Parameters
    ----------
    path
        The file.
    dtype
        Type of the numbers, ``"<i4"`` for example.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        import numpy as np

        self.dtype = np.dtype(dtype)
        self.length = 0
        self._stream = path.open("wb")
        self._header_bytes = self._write_header(10**15)

    def append(self, values: NDArray[Any]) -> None:
        """Append values, converted to the file's type."""
        values.astype(self.dtype, copy=False).tofile(self._stream)
        self.length += len(values)

    def flush(self) -> None:
        """Set the header's length to that of the values so far, as ``__exit__`` does."""
        self._stream.seek(0)
        # The format pads headers to a multiple of 64 bytes, so a shorter number does not move the data.
        if self._write_header(self.length) != self._header_bytes:
            raise AssertionError("the .npy header changed its size")
        self._stream.seek(0, os.SEEK_END)
        self._stream.flush()

    def close(self) -> None:
        """Close the file without setting its length."""
        self._stream.close()

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()
        self.close()

    def _write_header(self, length: int) -> int:
        from numpy.lib import format as npy

        described = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (length,)}
        npy.write_array_header_1_0(self._stream, described)
        return self._stream.tell()


class NpyReader:
    """Reads slices of a one-dimensional ``.npy`` file, each into a new array; threads may share a reader.

    A slice raises as ``fill``.

    Examples
    --------
    >>> with NpyWriter(Path("numbers.npy"), "<i4") as writer:
    ...     writer.append(np.arange(5))
    >>> NpyReader(Path("numbers.npy"))[1:3]
    array([1, 2], dtype=int32)
    """

    def __init__(self, path: Path) -> None:
        from numpy.lib import format as npy

        self._stream = path.open("rb")
        npy.read_magic(self._stream)
        shape, _, self.dtype = npy.read_array_header_1_0(self._stream)
        self.length: int = shape[0]
        self._offset = self._stream.tell()

    def __getitem__(self, part: slice) -> NDArray[Any]:
        import numpy as np

        start, stop, _ = part.indices(self.length)
        values = np.empty(max(0, stop - start), self.dtype)
        self.fill(values, start)
        return values

    def fill(self, values: NDArray[Any], start: int) -> None:
        """Read the numbers from ``start`` on into a contiguous array of the file's type, as many as it takes.

        Raises
        ------
        BadInput
            The file does not have as many.
        """
        room = memoryview(values.view("u1").data)  # NumPy's view: an empty array cannot be cast
        offset, filled = self._offset + start * self.dtype.itemsize, 0
        while filled < len(room):  # by position, so that threads can share a file
            read = os.preadv(self._stream.fileno(), [room[filled:]], offset + filled)
            if not read:
                raise BadInput(f"{self._stream.name}: is shorter than its header says", public="model file corrupt")
            filled += read

    def gathered(self, starts: NDArray[Any], stops: NDArray[Any]) -> NDArray[Any]:
        """Several slices, one after the other: a microsecond each, where they are in the page cache."""
        import numpy as np

        size, file = self.dtype.itemsize, self._stream.fileno()
        offsets, lengths = (self._offset + starts * size).tolist(), ((stops - starts) * size).tolist()
        parts = [os.pread(file, length, offset) for length, offset in zip(lengths, offsets, strict=True)]
        return np.frombuffer(b"".join(parts), self.dtype)

    def announce(self, part: slice) -> None:
        """Let the kernel read a slice ahead, into its page cache."""
        start, stop, _ = part.indices(self.length)
        size = self.dtype.itemsize
        os.posix_fadvise(
            self._stream.fileno(), self._offset + start * size, (stop - start) * size, os.POSIX_FADV_WILLNEED
        )

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def ranges(indptr: NDArray[Any], size: int, after: int = 0) -> Iterator[tuple[int, int]]:
    """Cut rows into ranges (start, stop) of at most ``size`` interactions each, but of at least one row.

    Parameters
    ----------
    indptr
        Offsets of the rows, shape (rows + 1,).
    size
        Interactions per range.
    after
        First row of the first range.

    Examples
    --------
    >>> list(ranges(np.array([0, 2, 3, 9]), 3))
    [(0, 2), (2, 3)]
    """
    rows, start = len(indptr) - 1, after
    while start < rows:
        stop = int(indptr.searchsorted(indptr[start] + size, side="right")) - 1
        stop = min(max(stop, start + 1), rows)
        yield start, stop
        start = stop


class History:
    """A CSR matrix on disk, read by rows.

    Parameters
    ----------
    directory
        Folder of the files.
    name
        ``"history"`` for all interactions, ``"heldout"`` for the items that evaluation scores.
    columns
        Number of items, to check a model folder's files when they are read; ``None``: the files are this run's own.

    Raises
    ------
    BadInput
        With ``columns``: offsets that are not increasing, items that are out of range, values that are not finite.
    """

    def __init__(self, directory: Path, name: str = "history", *, columns: int | None = None) -> None:
        self._path, self._columns = directory / f"{name}.items.npy", columns
        self.indptr: NDArray[np.int64] = NpyReader(directory / f"{name}.indptr.npy")[:]
        self._items = NpyReader(directory / f"{name}.items.npy")
        values = directory / f"{name}.values.npy"
        self._values = NpyReader(values) if values.exists() else None
        if columns is not None:
            self._check(self.indptr[0] == 0 and self.indptr[-1] == self._items.length)
            starts = (self.indptr[row : row + BLOCK + 1] for row in range(0, self.rows, BLOCK))
            self._check(all((some[1:] >= some[:-1]).all() for some in starts))

    def _check(self, right: object) -> None:
        if not right:
            raise BadInput(f"{self._path}: the history is damaged", public="model file corrupt")

    @property
    def rows(self) -> int:
        """Number of users."""
        return len(self.indptr) - 1

    @property
    def size(self) -> int:
        """Number of interactions."""
        return int(self.indptr[-1])

    def items(self, start: int, stop: int | None = None) -> NDArray[np.int32]:
        """Item indices of the rows ``start`` to ``stop`` (by default one row), concatenated; increasing in each row."""
        items = self._items[self._span(start, stop)]
        if self._columns is not None and len(items):
            self._check(items.min() >= 0 and items.max() < self._columns)
        return items

    def gathered(self, rows: NDArray[Any]) -> NDArray[np.int32]:
        """Item indices of some rows, concatenated."""
        starts, stops = self.indptr[rows], self.indptr[rows + 1]
        items = self._items.gathered(starts, stops)
        self._check(len(items) == (stops - starts).sum())
        if self._columns is not None and len(items):
            self._check(items.min() >= 0 and items.max() < self._columns)
        return items

    def values(self, start: int, stop: int | None = None) -> NDArray[np.float32]:
        """Weights of the same interactions; raises ``ValueError`` if there are none."""
        import numpy as np

        if self._values is None:
            raise ValueError("this matrix has no weights")
        values = self._values[self._span(start, stop)]
        if self._columns is not None:
            self._check(np.isfinite(values).all())
        return values

    def announce(self, start: int, stop: int) -> None:
        """Let the kernel read rows ahead."""
        for reader in (self._items, self._values):
            if reader is not None:
                reader.announce(self._span(start, stop))

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[int, int]]:
        """Ranges of rows (start, stop) of at most ``size`` interactions (``ranges``)."""
        return ranges(self.indptr, size)

    def close(self) -> None:
        """Close the files."""
        for reader in (self._items, self._values):
            if reader is not None:
                reader.close()

    def _span(self, start: int, stop: int | None) -> slice:
        return slice(int(self.indptr[start]), int(self.indptr[start + 1 if stop is None else stop]))
