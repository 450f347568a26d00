"""Between Arrow and NumPy by their buffers, without ``pa.array``, ``pa.scalar`` and ``to_numpy``.

Those import pandas whenever it is installed, to ask whether a Series is at play: 30 MiB and a quarter of a second
that no ceiling should pay for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# Arrow's own pool keeps what is freed (13 MiB after reading a CSV); the system's, tamed, gives it back. Read when
# pyarrow is first imported, which in this package happens inside functions only.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def text(values: Iterable[str | None]) -> Any:
    """A string array."""
    import pyarrow as pa

    builder = pa.lib.StringBuilder()
    for value in values:
        builder.append(value)
    return builder.finish()


def strings(letters: NDArray[np.uint8], ends: NDArray[np.int32]) -> Any:
    """A string array of texts that follow one another, by where each ends; without copying the text."""
    import numpy as np
    import pyarrow as pa

    offsets = np.concatenate([np.zeros(1, np.int32), ends])
    return pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(letters))


def letters(texts: Any) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The bytes of a string array, one text after the other, and len + 1 places where texts begin and end in them.

    Over the same memory: the first place is 0 only if the array is not a slice. There must be no nulls.
    """
    import numpy as np

    _, places, data = texts.buffers()
    bounds = np.frombuffer(places, np.int32, len(texts) + 1, texts.offset * 4)
    text = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return text[bounds[0] : bounds[-1]], bounds


def numbers(values: NDArray[Any]) -> Any:
    """A numeric array over the same memory where it is contiguous; no nulls."""
    import numpy as np
    import pyarrow as pa

    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def mask(values: NDArray[np.bool_]) -> Any:
    """A boolean array, for ``pc.filter``."""
    import numpy as np
    import pyarrow as pa

    bits = np.packbits(values, bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])


def values(column: Any) -> NDArray[Any]:
    """The numbers of a numeric array, over the same memory; what stands in place of a null is arbitrary."""
    import numpy as np

    kind = np.dtype(column.type.to_pandas_dtype())
    return np.frombuffer(column.buffers()[1], kind, len(column), column.offset * kind.itemsize)


def valid(column: Any) -> NDArray[np.bool_]:
    """Which values are not null."""
    import numpy as np

    bits = column.buffers()[0]
    if bits is None or not column.null_count:
        return np.ones(len(column), bool)
    last = column.offset + len(column)
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=last, bitorder="little")[column.offset :].astype(bool)


def floats(column: Any) -> NDArray[np.float64]:
    """A float64 array, NaN for null; a copy only where there are nulls."""
    import numpy as np

    return values(column) if not column.null_count else np.where(valid(column), values(column), np.nan)


def read_parquet(path: Any) -> Any:
    """A whole small Parquet file as a table (``pq.read_table`` imports pandas too)."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as file:
        return file.read(use_threads=False)
