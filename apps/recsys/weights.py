"""``weights.safetensors`` of a recommender: written whole, read tensor by tensor into arrays of their own.

``item_factors`` and, for embeddings with two tables, ``taste_factors``, shape (items, factors): float32, or int8 or
int4 codes (two a byte) with ``NAME.scales``, a float16 a row. ``compared_items``, int32: rows that ``bpr`` looks at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WEIGHTS = "weights.safetensors"
ITEMS, TASTE, COMPARED = "item_factors", "taste_factors", "compared_items"
_TYPES = {"F32": "<f4", "F16": "<f2", "I8": "<i1", "U8": "<u1", "I32": "<i4"}
DECODED_ROWS = 1 << 13
"""Rows of codes turned into numbers at a time."""


def write(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as safetensors, without the copy that the library's own writer makes."""
    import numpy as np

    names = {np.dtype(kind): name for name, kind in _TYPES.items()}
    header, end = {}, 0
    for name, values in tensors.items():
        start, end = end, end + values.nbytes
        header[name] = {"dtype": names[values.dtype], "shape": values.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            np.ascontiguousarray(values).tofile(stream)


def read(path: Path, name: str = ITEMS) -> NDArray[np.float32]:
    """A matrix of factors as float32.

    Raises
    ------
    InputError
        If the file does not hold it, in the size that its header says.
    """
    stored = _tensor(path, name)
    if stored.dtype.kind == "f":
        return stored
    import numpy as np

    scales = _tensor(path, f"{name}.scales").astype(np.float32)
    packed = stored.dtype == np.uint8
    factors = np.empty((len(stored), stored.shape[1] * (2 if packed else 1)), np.float32)
    for start in range(0, len(stored), DECODED_ROWS):
        part = stored[start : start + DECODED_ROWS]
        out = factors[start : start + DECODED_ROWS]
        if packed:
            out[:, 0::2], out[:, 1::2] = (part & 15).astype(np.int8) - 8, (part >> 4).astype(np.int8) - 8
        else:
            out[:] = part
        out *= scales[start : start + DECODED_ROWS, None]
    return factors


def read_compared(path: Path) -> NDArray[np.int32]:
    """The rows of items that ``bpr`` compares a user's with.

    Raises
    ------
    InputError
        As ``read``.
    """
    return _tensor(path, COMPARED)


def _tensor(path: Path, name: str) -> NDArray[Any]:
    """One tensor as it is stored.

    The library's loader maps the file and copies it, so both would be resident; the format is a length, a JSON
    header and the bytes.
    """
    import numpy as np

    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        if name not in header or header[name]["dtype"] not in _TYPES:
            raise InputError(f"{path}: holds no {name} of a known type", public="weights unreadable")
        entry = header[name]
        values = np.empty(entry["shape"], _TYPES[entry["dtype"]])
        stream.seek(entry["data_offsets"][0], os.SEEK_CUR)
        if stream.readinto(values.data) != values.nbytes:
            raise InputError(f"{path}: {name} is not of the size its header says", public="weights unreadable")
    return values
