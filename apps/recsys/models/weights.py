"""Write and read ``weights.safetensors`` of a recommender.

``item_factors`` and, for embeddings with two tables, ``user_side_factors`` have shape (items, factors): float32, or
int8 or int4 codes (two per byte) with ``NAME.scales``, a float16 per row. ``item_prior``, float32, is added to an
item's score for every user. ``compared_items``, int32, are the items that ``bpr`` uses as negatives.

A linear model has ``item_counts``, int32, the users of each item, and with a spectrum ``spectrum`` of shape (items,
factors) and ``eigenvalues``, float32; or the spectrum as codes, uint8, with ``spectrum.scales``, a float16 per row, and
``spectrum.unit``, float32, which they are multiples of (``common.compression.codes``). EASE has ``ease_variances``,
float32 of shape (items,), and its weights in a file of their own (``apps.recsys.models.linear.ease``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from apps.recsys.models.streamed import Streamed
from common.compression.codes import packed_bytes
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WEIGHTS = "weights.safetensors"
ITEMS, USER_SIDE, PRIOR, COMPARED = "item_factors", "user_side_factors", "item_prior", "compared_items"
COUNTS, SPECTRUM, EIGENVALUES = "item_counts", "spectrum", "eigenvalues"
VARIANCES = "ease_variances"
SCALES, UNIT = f"{SPECTRUM}.scales", f"{SPECTRUM}.unit"
OLD_USER_SIDE = "taste_factors"
"""Name of ``USER_SIDE`` before version 0.2."""
_TYPES = {"F32": "<f4", "F16": "<f2", "I8": "<i1", "U8": "<u1", "I32": "<i4"}
LONGEST_HEADER = 1 << 20
"""Most bytes of a header that is read; those of this suite have a few hundred."""
DECODED_ROWS = 1 << 13
"""Rows of codes decoded at a time."""


def write(path: Path, tensors: Mapping[str, NDArray[Any] | Streamed]) -> None:
    """Write arrays of float32, float16, int8, uint8 or int32 as safetensors, without the copy that the library's writer
    makes."""
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
            for block in values.blocks() if isinstance(values, Streamed) else [values]:
                np.ascontiguousarray(block).tofile(stream)


def read(path: Path, name: str = ITEMS, *, more: int = 0, mapped: bool = False) -> NDArray[np.float32]:
    """Read a matrix of factors as float32.

    Parameters
    ----------
    path
        The file.
    name
        Name of the tensor.
    more
        Columns to add at the end; their content is not set.
    mapped
        True to map the file, so that processes share its pages, where it has float32 and no columns are added.

    Returns
    -------
    NDArray
        Shape (items, factors + more).

    Raises
    ------
    BadInput
        The file has no such tensor, or not all of its bytes.
    """
    import numpy as np

    (rows, columns), kind, offset = entry(path, name)
    if mapped and not more and kind == np.float32 and rows:
        whole: NDArray[np.float32] = np.memmap(path, kind, "r", offset, (rows, columns)).view(np.ndarray)
        return _finite(path, name, whole)
    packed, scales = kind == np.uint8, None if kind.kind == "f" else tensor(path, f"{name}.scales").astype(np.float32)
    width = columns * (2 if packed else 1)
    factors = np.empty((rows, width + more), np.float32)
    with path.open("rb") as stream:
        stream.seek(offset)
        for start in range(0, rows, DECODED_ROWS):
            codes = np.empty((min(DECODED_ROWS, rows - start), columns), kind)
            _fill(stream, codes, path, name)
            decoded = factors[start : start + len(codes), :width]
            if packed:
                unpack(codes, decoded)
            else:
                decoded[:] = codes
            if scales is not None:
                decoded *= scales[start : start + len(codes), None]
            _finite(path, name, decoded)
    return factors


def unpack(codes: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Write the two numbers from -8 to 7 of each byte into ``out``, which is twice as wide."""
    import numpy as np

    out[:, 0::2], out[:, 1::2] = (codes & 15).astype(np.int8) - 8, (codes >> 4).astype(np.int8) - 8


def read_all(path: Path) -> dict[str, NDArray[Any]]:
    """Read all tensors by name as they are stored, under their present names.

    Raises
    ------
    BadInput
        As ``read``.
    """
    header, _ = _header(path)
    present = {OLD_USER_SIDE: USER_SIDE, f"{OLD_USER_SIDE}.scales": f"{USER_SIDE}.scales"}
    return {present.get(name, name): tensor(path, name) for name in header if name != "__metadata__"}


def decoded(tensors: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    """A matrix of factors among stored tensors as float32, shape (items, factors)."""
    import numpy as np

    codes, scales = tensors[name], tensors.get(f"{name}.scales")
    if scales is None:
        return codes.astype(np.float32)
    numbers = codes
    if codes.dtype == np.uint8:
        numbers = np.empty((len(codes), 2 * codes.shape[1]), np.int8)
        unpack(codes, numbers)
    factors: NDArray[np.float32] = numbers * scales.astype(np.float32)[:, None]
    return factors


def read_items(path: Path, *, prior: bool, mapped: bool = False) -> NDArray[np.float32]:
    """Read the items' factors, with the prior as the last column if there is one; ``mapped`` as in ``read``.

    Raises
    ------
    BadInput
        As ``read``.
    """
    factors = read(path, more=int(prior), mapped=mapped)
    if prior:
        factors[:, -1] = read_prior(path)
    return factors


def read_prior(path: Path) -> NDArray[np.float32]:
    """What is added to each item's score, shape (items,); raises as ``read``."""
    return _finite(path, PRIOR, tensor(path, PRIOR))


def read_compared(path: Path, items: int) -> NDArray[np.int32]:
    """The rows of the items that ``bpr`` uses as negatives.

    Raises
    ------
    BadInput
        As ``read``, or one is no row of ``items``.
    """
    rows = tensor(path, COMPARED)
    if len(rows) and not 0 <= rows.min() <= rows.max() < items:
        raise BadInput(f"{path}: {COMPARED} has numbers that are no rows of items", public="weights unreadable")
    return rows


def read_counts(path: Path) -> NDArray[np.int32]:
    """The users of each item of a linear model, shape (items,).

    Raises
    ------
    BadInput
        As ``read``, or a count is negative.
    """
    counts = tensor(path, COUNTS)
    if len(counts) and counts.min() < 0:
        raise BadInput(f"{path}: {COUNTS} has negative numbers", public="weights unreadable")
    return counts


def read_spectrum(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The eigenvectors of a linear model, shape (items, factors), and their eigenvalues.

    Raises
    ------
    BadInput
        As ``read``, or an eigenvalue is negative or not finite.
    """
    return _finite(path, SPECTRUM, tensor(path, SPECTRUM)), read_eigenvalues(path)


def read_eigenvalues(path: Path) -> NDArray[np.float32]:
    """The eigenvalues of a linear model; raises as ``read_spectrum``."""
    values = tensor(path, EIGENVALUES)
    if not ((values >= 0) & (values < float("inf"))).all():
        raise BadInput(f"{path}: {EIGENVALUES} has numbers that cannot be eigenvalues", public="weights unreadable")
    return values


def read_variances(path: Path) -> NDArray[np.float32]:
    """What EASE divides by, shape (items,).

    Raises
    ------
    BadInput
        As ``read``, or a number is not above 0 and finite.
    """
    import numpy as np

    variances = tensor(path, VARIANCES)
    if not ((variances > 0) & np.isfinite(variances)).all():
        raise BadInput(f"{path}: {VARIANCES} has numbers that are not above 0", public="weights unreadable")
    return variances


def read_user_side(path: Path) -> NDArray[np.float32]:
    """The items' vectors as parts of users, shape (items, factors), under their present or their old name.

    Raises
    ------
    BadInput
        As ``read``.
    """
    return read(path, user_side_name(path))


def user_side_name(path: Path) -> str:
    """Name of that tensor in a file."""
    return USER_SIDE if has(path, USER_SIDE) else OLD_USER_SIDE


def has(path: Path, name: str) -> bool:
    """True if a file has a tensor of this name."""
    return name in _header(path)[0]


def check(
    path: Path,
    *,
    items: int,
    factors: int | None,
    linear: bool = False,
    is_ease: bool = False,
    bits: int = 32,
    coded: Mapping[str, tuple[str, list[int | range]]] = {},
) -> None:
    """Check the header of a file, without loading any library.

    Parameters
    ----------
    path
        The file.
    items
        Rows that the items' numbers must have.
    factors
        Columns of ``item_factors`` or of ``spectrum``; ``None``: any number.
    linear
        True for a linear model.
    is_ease
        True for a linear model of the form ``ease``.
    bits
        Bits of a number of its spectrum.
    coded
        Types and shapes of tensors of item vectors that are codes (``coded.stored.required``).

    Raises
    ------
    BadInput
        The header is damaged; a tensor is of an unknown type, negative, outside the file or of another size than its
        shape; a tensor that the model needs is missing or has another shape.
    """
    header, start = _header(path)
    room = path.stat().st_size - start
    for name, entry in header.items():
        if name != "__metadata__" and not _consistent(entry, room):
            raise BadInput(f"{path}: {name}: a type, shape or place that cannot be", public="weights unreadable")
    for name, (kind, wanted) in coded.items():
        _require(path, header, name, kind, wanted)
    if linear:
        _require(path, header, COUNTS, "I32", [items])
        if is_ease:
            _require(path, header, VARIANCES, "F32", [items])
        if factors:
            for name, kind, wanted in () if coded else _spectrum(items, factors, bits):
                _require(path, header, name, kind, wanted)
            _require(path, header, EIGENVALUES, "F32", [factors])
        return
    if PRIOR in header:
        _require(path, header, PRIOR, "F32", [items])
    if coded:
        return
    if ITEMS not in header:
        raise BadInput(f"{path}: has no {ITEMS}", public="weights unreadable")
    shape, packed = header[ITEMS]["shape"], header[ITEMS]["dtype"] == "U8"
    columns = shape[1] * (2 if packed else 1) if len(shape) == 2 else None
    if columns is None or shape[0] != items or factors not in (None, columns):
        raise BadInput(
            f"{path}: {ITEMS} has shape {shape}, the manifest says {items} items of {factors or 'some'} factors",
            public="weights unreadable",
        )


def _spectrum(items: int, factors: int, bits: int) -> list[tuple[str, str, list[int | range]]]:
    """Names, types and shapes of the tensors of a spectrum."""
    if bits == 32:
        return [(SPECTRUM, "F32", [items, factors])]
    return [(SPECTRUM, "U8", [items, packed_bytes(factors, bits)]), (SCALES, "F16", [items]), (UNIT, "F32", [1])]


def _require(path: Path, header: Mapping[str, Any], name: str, kind: str, shape: Sequence[int | range]) -> None:
    entry = header.get(name, {"dtype": "none", "shape": "none"})
    sizes = entry["shape"] if len(entry["shape"]) == len(shape) else [None] * len(shape)
    wanted = [size if isinstance(size, range) else range(size, size + 1) for size in shape]
    if entry["dtype"] != kind or not all(size in some for size, some in zip(sizes, wanted, strict=True)):
        raise BadInput(
            f"{path}: {name} is {entry['dtype']} of shape {entry['shape']}; the manifest says {kind} of {shape}",
            public="weights unreadable",
        )


def _consistent(entry: Any, room: int) -> bool:
    """True if a tensor's entry in the header has a known type, and bytes in the file that are as many as its shape."""
    if not isinstance(entry, dict) or entry.get("dtype") not in _TYPES:
        return False
    shape, place = entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(shape, list) and isinstance(place, list) and len(place) == 2):
        return False
    if not all(type(number) is int and number >= 0 for number in (*shape, *place)):
        return False
    size = prod(shape) * int(_TYPES[entry["dtype"]][-1])
    return bool(place[1] <= room and place[1] - place[0] == size)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header, and the offset at which the tensors begin."""
    damaged = BadInput(f"{path}: not a safetensors file, or damaged", public="weights unreadable")
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > min(LONGEST_HEADER, path.stat().st_size - 8):
            raise damaged
        try:
            header = json.loads(stream.read(size))
        except (ValueError, RecursionError):
            raise damaged from None
    if not isinstance(header, dict):
        raise damaged
    return header, 8 + size


def entry(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """A tensor's shape and type, and its offset in the file; raises as ``read``."""
    import numpy as np

    header, start = _header(path)
    if name not in header or header[name]["dtype"] not in _TYPES:
        raise BadInput(f"{path}: has no {name} of a type that can be read", public="weights unreadable")
    entry = header[name]
    return tuple(entry["shape"]), np.dtype(_TYPES[entry["dtype"]]), start + entry["data_offsets"][0]


def _finite(path: Path, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the values of a tensor; raises as ``read`` if some are not finite."""
    import numpy as np

    if not all(np.isfinite(values[at : at + DECODED_ROWS]).all() for at in range(0, len(values), DECODED_ROWS)):
        raise BadInput(f"{path}: {name} has numbers that are not finite", public="weights unreadable")
    return values


def _fill(stream: BinaryIO, values: NDArray[Any], path: Path, name: str) -> None:
    if stream.readinto(values.data) != values.nbytes:  # type: ignore[attr-defined]
        raise BadInput(f"{path}: {name} is shorter than its header says", public="weights unreadable")


def tensor(path: Path, name: str) -> NDArray[Any]:
    """Read one tensor as it is stored; raises as ``read``.

    The library's loader maps the file and copies it, so both are resident; the format is a length, JSON and the bytes.
    """
    import numpy as np

    shape, kind, offset = entry(path, name)
    values = np.empty(shape, kind)
    with path.open("rb") as stream:
        stream.seek(offset)
        _fill(stream, values, path, name)
    return values
