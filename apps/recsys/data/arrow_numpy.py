"""Convert between Arrow and NumPy by their buffers.

``pa.array``, ``pa.scalar`` and ``to_numpy`` are avoided because they import pandas if it is installed: 30 MiB and a
quarter of a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# Arrow's own pool keeps freed memory (13 MiB after reading a CSV); the system's pool, as it is set here, returns it.
# The variable is read at the first import of pyarrow, which in this package happens inside functions only.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


BATCH = 1 << 16
"""Rows and bytes of a Parquet file that are read at a time."""


def text(values: Iterable[str | None]) -> Any:
    """Make a string array.

    Examples
    --------
    >>> text(["a", None])[0].as_py()
    'a'
    """
    import pyarrow as pa

    builder = pa.lib.StringBuilder()
    for value in values:
        builder.append(value)
    return builder.finish()


def strings(letters: NDArray[np.uint8], ends: NDArray[np.int32]) -> Any:
    """Make a string array of concatenated texts, without copying the text.

    Parameters
    ----------
    letters
        UTF-8 bytes of all texts.
    ends
        Offset of the end of each text, shape (n,).
    """
    import numpy as np
    import pyarrow as pa

    offsets = np.concatenate([np.zeros(1, np.int32), ends])
    return pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(letters))


def letters(texts: Any) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The texts of a string array without nulls, as views of its memory.

    Returns
    -------
    bytes, offsets
        UTF-8 bytes of all texts, and the offsets of their starts and of the last end, shape (n + 1,). The first offset
        is not 0 if the array is a slice.
    """
    import numpy as np

    _, offset_buffer, data = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32, len(texts) + 1, texts.offset * 4)
    text = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return text[offsets[0] : offsets[-1]], offsets


def numbers(values: NDArray[Any]) -> Any:
    """Make a numeric array without nulls; a copy only if ``values`` is not contiguous."""
    import numpy as np
    import pyarrow as pa

    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def mask(values: NDArray[np.bool_]) -> Any:
    """Make a boolean array, for ``pc.filter``."""
    import numpy as np
    import pyarrow as pa

    bits = np.packbits(values, bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])


def values(column: Any) -> NDArray[Any]:
    """The numbers of a numeric array, as a view of its memory; the value at a null is arbitrary."""
    import numpy as np

    kind = np.dtype(column.type.to_pandas_dtype())
    return np.frombuffer(column.buffers()[1], kind, len(column), column.offset * kind.itemsize)


def valid(column: Any) -> NDArray[np.bool_]:
    """Mask of the values that are not null, shape (n,)."""
    import numpy as np

    bits = column.buffers()[0]
    if bits is None or not column.null_count:
        return np.ones(len(column), bool)
    last = column.offset + len(column)
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=last, bitorder="little")[column.offset :].astype(bool)


def truths(column: Any) -> NDArray[np.bool_]:
    """The truth values of a boolean array as a mask, shape (n,); a null is False."""
    import numpy as np

    if not len(column):
        return np.zeros(0, bool)
    last = column.offset + len(column)
    bits = np.unpackbits(np.frombuffer(column.buffers()[1], np.uint8), count=last, bitorder="little")
    return bits[column.offset :].astype(bool) & valid(column)


def floats(column: Any) -> NDArray[np.float64]:
    """The numbers of a float64 array with NaN for null; a copy only if there are nulls."""
    import numpy as np

    return values(column) if not column.null_count else np.where(valid(column), values(column), np.nan)


def is_text(text: str) -> bool:
    """False if the text has bytes that are not UTF-8, as names of files and arguments may (``surrogateescape``)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def native(path: Path) -> str:
    """A path as Arrow takes it: text in UTF-8, by an open folder where the user's own is not.

    Raises
    ------
    BadInput
        The file's own name is not UTF-8.
    """
    if is_text(str(path)):
        return str(path)
    if not is_text(path.name):
        raise BadInput(f"{path}: the name of the file is not UTF-8; rename it", public="name not UTF-8")
    return f"/proc/self/fd/{_folder(path.absolute().parent)}/{path.name}"


@cache
def _folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY)


def read_parquet(path: Any) -> Any:
    """Read a small Parquet file as a table. (``pq.read_table`` imports pandas.)"""
    with _opened(path) as file:
        return file.read(use_threads=False)


def read_columns(path: Any, names: Iterable[str]) -> dict[str, Any]:
    """Read some columns of a Parquet file, those that it has: name -> Arrow array or chunked array.

    Integers and text are read block by block into one array: at once, they and the file's pages exist three times.
    """
    import pyarrow as pa

    found = {}
    with _opened(path) as file:
        for name in names:
            place = file.schema_arrow.get_field_index(name)
            if place < 0:
                continue
            kind, column = file.schema_arrow.field(place).type, None
            if file.metadata.num_rows and kind in (pa.int64(), pa.string()):
                column = _integers(file, name) if kind == pa.int64() else _texts(file, name)
            found[name] = file.read([name], use_threads=False)[name] if column is None else column
    return found


def _integers(file: Any, name: str) -> Any:
    """A column of int64; ``None`` if it has nulls."""
    import numpy as np

    out, at = np.empty(file.metadata.num_rows, np.int64), 0
    for batch in file.iter_batches(BATCH, columns=[name], use_threads=False):
        column = batch.column(0)
        if column.null_count:
            return None
        out[at : at + len(column)] = values(column)
        at += len(column)
    return numbers(out[:at])


def _texts(file: Any, name: str) -> Any:
    """A column of text as a chunked array; ``None`` if it has nulls, or more letters than its bytes in the file.

    Those are at least as many where each text is stored by itself.
    """
    import numpy as np
    import pyarrow as pa

    place = file.schema_arrow.get_field_index(name)
    groups = (file.metadata.row_group(group).column(place) for group in range(file.metadata.num_row_groups))
    room = np.empty(sum(group.total_uncompressed_size for group in groups), np.uint8)
    ends, at, end = np.empty(file.metadata.num_rows, np.int32), 0, 0
    for batch in file.iter_batches(BATCH, columns=[name], use_threads=False):
        column = batch.column(0)
        text, offsets = letters(column)
        if column.null_count or end + len(text) > min(len(room), np.iinfo(np.int32).max):
            return None
        room[end : end + len(text)] = text
        ends[at : at + len(column)] = offsets[1:] - (offsets[0] - end)
        at, end = at + len(column), end + len(text)
    return pa.chunked_array([strings(room[:end], ends[:at])])


def _opened(path: Any) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(native(path) if isinstance(path, Path) else path, pre_buffer=False, buffer_size=BATCH)
