"""``weights.safetensors`` of a recommender: written whole, read tensor by tensor into arrays of their own.

``item_factors`` and, for embeddings with two tables, ``user_side_factors``, shape (items, factors): float32, or int8 or
int4 codes (two a byte) with ``NAME.scales``, a float16 a row. ``item_prior``, float32: what an item's score has added
whoever the user. ``compared_items``, int32: rows that ``bpr`` looks at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WEIGHTS = "weights.safetensors"
ITEMS, USER_SIDE, PRIOR, COMPARED = "item_factors", "user_side_factors", "item_prior", "compared_items"
OLD_USER_SIDE = "taste_factors"
"""Name of ``USER_SIDE`` before version 0.2."""
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


def read(path: Path, name: str = ITEMS, *, more: int = 0) -> NDArray[np.float32]:
    """A matrix of factors as float32; ``more`` columns after them are not set.

    Raises
    ------
    BadInput
        If the file does not hold it, in the size that its header says.
    """
    import numpy as np

    (rows, columns), kind, place = _entry(path, name)
    packed, scales = kind == np.uint8, None if kind.kind == "f" else _tensor(path, f"{name}.scales").astype(np.float32)
    width = columns * (2 if packed else 1)
    factors = np.empty((rows, width + more), np.float32)
    with path.open("rb") as stream:
        stream.seek(place)
        for start in range(0, rows, DECODED_ROWS):
            part = np.empty((min(DECODED_ROWS, rows - start), columns), kind)
            _fill(stream, part, path, name)
            out = factors[start : start + len(part), :width]
            if packed:
                out[:, 0::2], out[:, 1::2] = (part & 15).astype(np.int8) - 8, (part >> 4).astype(np.int8) - 8
            else:
                out[:] = part
            if scales is not None:
                out *= scales[start : start + len(part), None]
    return factors


def read_items(path: Path, *, prior: bool) -> NDArray[np.float32]:
    """The items' factors; with a ``prior``, that as a last column.

    Raises
    ------
    BadInput
        As ``read``.
    """
    factors = read(path, more=int(prior))
    if prior:
        factors[:, -1] = _tensor(path, PRIOR)
    return factors


def read_compared(path: Path) -> NDArray[np.int32]:
    """The rows of items that ``bpr`` compares a user's with.

    Raises
    ------
    BadInput
        As ``read``.
    """
    return _tensor(path, COMPARED)


def read_user_side(path: Path) -> NDArray[np.float32]:
    """The items' vectors as parts of users, shape (items, factors), under their present or their old name.

    Raises
    ------
    BadInput
        As ``read``.
    """
    header, _ = _header(path)
    return read(path, USER_SIDE if USER_SIDE in header else OLD_USER_SIDE)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header, and the offset at which the tensors begin."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(size))
    return header, 8 + size


def _entry(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """A tensor's shape and type, and its offset in the file."""
    import numpy as np

    header, start = _header(path)
    if name not in header or header[name]["dtype"] not in _TYPES:
        raise BadInput(f"{path}: holds no {name} of a known type", public="weights unreadable")
    entry = header[name]
    return tuple(entry["shape"]), np.dtype(_TYPES[entry["dtype"]]), start + entry["data_offsets"][0]


def _fill(stream: BinaryIO, values: NDArray[Any], path: Path, name: str) -> None:
    if stream.readinto(values.data) != values.nbytes:  # type: ignore[attr-defined]
        raise BadInput(f"{path}: {name} is not of the size its header says", public="weights unreadable")


def _tensor(path: Path, name: str) -> NDArray[Any]:
    """One tensor as it is stored.

    The library's loader maps the file and copies it, so both would be resident; the format is a length, a JSON
    header and the bytes.
    """
    import numpy as np

    shape, kind, place = _entry(path, name)
    values = np.empty(shape, kind)
    with path.open("rb") as stream:
        stream.seek(place)
        _fill(stream, values, path, name)
    return values
