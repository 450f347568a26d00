"""Codes of item vectors in ``weights.safetensors``, as ``recsys compress`` writes them.

A matrix NAME has six tensors: ``NAME``, the packed codes, uint8 of shape (bytes,); ``NAME.scales``, uint8 of shape
(items,); and ``NAME.bits``, uint8 of shape (classes, factors), ``NAME.deviations``, float32 of shape (factors,),
``NAME.firsts``, uint8, and ``NAME.units``, float32, both of shape (classes,): the levels
(``common.compression.row_codes``). With code books (``--codes product``, ``residual``) there are instead of these four
``NAME.entries``, float16 of shape (layers, entries, factors), ``NAME.starts``, int32 of shape (groups,), and
``NAME.unit``, float32 of shape (1,) (``common.compression.books``). The manifest's ``codes`` has the bytes of a row of
each, entries among them: their mean, rounded up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from apps.recsys.models import weights
from common.compression.book_codes import BookCodes
from common.compression.books import Books
from common.compression.row_codes import SCALE_BYTES, RowCodes
from common.compression.row_grid import Grid
from common.compression.row_levels import MOST_BITS
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Coded: TypeAlias = RowCodes | BookCodes
"""A matrix of codes, in either form."""
GRID = ("bits", "deviations", "firsts", "units")
"""Tensors of the levels, which have no row of each item, by the ends of their names."""
BOOKS = ("entries", "starts", "unit")
"""The same of code books."""
MOST_LAYERS = 8
"""Entries that a file may add in a group."""
MOST_CLASSES = 64
"""Classes of rows that a file may have."""


def is_coded(manifest: Mapping[str, Any]) -> bool:
    """True for a model whose item vectors are such codes."""
    return bool(manifest.get("codes"))


def is_books(manifest: Mapping[str, Any]) -> bool:
    """True for a model whose codes are entries of code books."""
    return "code_form" in manifest


def names_in(stored: Iterable[str]) -> set[str]:
    """Names of the matrices of codes among stored tensors."""
    ends = tuple(f".{parts[0]}" for parts in (GRID, BOOKS))
    return {name.rpartition(".")[0] for name in stored if name.endswith(ends)}


def tensors(name: str, codes: Coded) -> dict[str, NDArray[Any]]:
    """A matrix of codes, by the names of its tensors."""
    made: dict[str, NDArray[Any]] = {name: codes.packed, f"{name}.scales": codes.scales}
    if isinstance(codes, BookCodes):
        return made | {f"{name}.{part}": getattr(codes.books, part) for part in BOOKS}
    return made | {f"{name}.{part}": getattr(codes.grid, part) for part in GRID}


def row_size(codes: Coded) -> int:
    """Bytes of a row with its scale: the mean, rounded up."""
    return -(-codes.stored_bytes // max(1, len(codes)))


def of_tensors(stored: Mapping[str, NDArray[Any]], name: str) -> Coded:
    """The codes of a matrix among stored tensors."""
    if f"{name}.{BOOKS[0]}" in stored:
        return BookCodes(stored[name], stored[f"{name}.scales"], Books(*(stored[f"{name}.{part}"] for part in BOOKS)))
    grid = Grid(*(stored[f"{name}.{part}"] for part in GRID))
    return RowCodes(stored[name], stored[f"{name}.scales"], grid)


def read(path: Path, name: str) -> Coded:
    """Read the codes of a matrix, in either form; raises as ``read_levels``."""
    return _read_books(path, name) if weights.has(path, f"{name}.{BOOKS[0]}") else read_levels(path, name)


def read_levels(path: Path, name: str) -> RowCodes:
    """Read the codes of a matrix that are levels.

    Raises
    ------
    BadInput
        As ``weights.read``; bits that are not those of the codes; classes that are none; a number that cannot be a
        scale.
    """
    import numpy as np

    parts = {part: weights.tensor(path, f"{name}.{part}") for part in GRID}
    grid = Grid(**parts)
    numbers = np.concatenate([grid.units, grid.deviations])
    if (
        not len(grid.firsts) == len(grid.units) == len(grid.bits)
        or grid.firsts[0]
        or (np.diff(grid.firsts.astype(np.int64)) <= 0).any()
    ):
        raise BadInput(f"{path}: {name}.firsts are no classes of its rows", public="weights unreadable")
    codes = RowCodes(weights.tensor(path, name), weights.tensor(path, f"{name}.scales"), grid)
    if grid.bits.max(initial=0) > MOST_BITS or codes.expected_bytes != len(codes.packed):
        raise BadInput(f"{path}: {name}.bits are not those of its codes", public="weights unreadable")
    if not (np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise BadInput(f"{path}: {name} has numbers that cannot be scales", public="weights unreadable")
    return codes


def _read_books(path: Path, name: str) -> BookCodes:
    """Read the codes of a matrix that are entries; raises as ``read_levels``."""
    import numpy as np

    parts = {part: weights.tensor(path, f"{name}.{part}") for part in BOOKS}
    entries, starts, unit = (parts[part] for part in BOOKS)
    if starts[0] or (np.diff(starts) <= 0).any() or starts[-1] >= entries.shape[2]:
        raise BadInput(f"{path}: {name}.starts are no groups of its columns", public="weights unreadable")
    if not (np.isfinite(entries).all() and np.isfinite(unit).all() and (unit >= 0).all()):
        raise BadInput(f"{path}: {name} has entries or scales that are not finite", public="weights unreadable")
    codes = BookCodes(weights.tensor(path, name), weights.tensor(path, f"{name}.scales"), Books(entries, starts, unit))
    if entries.shape[1] != 1 << codes.books.bits or codes.expected_bytes != len(codes.packed):
        raise BadInput(f"{path}: {name}.entries are not those of its codes", public="weights unreadable")
    return codes


def required(manifest: Mapping[str, Any]) -> dict[str, tuple[str, list[int | range]]]:
    """Type and shape of each tensor of a model's codes, or a range of its sizes, by its name."""
    items, factors = manifest["items"], manifest["factors"]
    found: dict[str, tuple[str, list[int | range]]] = {}
    for name, size in manifest["codes"].items():
        found[name] = ("U8", [range(items * (size - SCALE_BYTES) + 1)])
        found[f"{name}.scales"] = ("U8", [items])
        if is_books(manifest):
            found[f"{name}.entries"] = ("F16", [range(1, MOST_LAYERS + 1), range(2, (1 << MOST_BITS) + 1), factors])
            found[f"{name}.starts"] = ("I32", [range(1, factors + 1)])
            found[f"{name}.unit"] = ("F32", [1])
            continue
        found[f"{name}.units"] = ("F32", [range(1, MOST_CLASSES + 1)])
        found[f"{name}.bits"] = ("U8", [range(1, MOST_CLASSES + 1), factors])
        found[f"{name}.firsts"] = ("U8", [range(1, MOST_CLASSES + 1)])
        found[f"{name}.deviations"] = ("F32", [factors])
    return found


def kept(stored: Mapping[str, NDArray[Any]], name: str, rows: NDArray[np.integer[Any]]) -> dict[str, NDArray[Any]]:
    """The tensors of a matrix with some of its rows, which are increasing."""
    return tensors(name, of_tensors(stored, name).taken(rows))


def decoded(stored: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    """A matrix of factors among stored tensors as float32, whatever it is stored as."""
    if name not in names_in(stored):
        return weights.decoded(stored, name)
    codes = of_tensors(stored, name)
    return codes.decode(slice(0, len(codes)))


def appended(stored: Mapping[str, NDArray[Any]], name: str, rows: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The codes of a matrix with further rows, which get the levels or entries that there are."""
    codes = of_tensors(stored, name)
    more = codes.with_rows(rows)
    return {name: more.packed, f"{name}.scales": more.scales}
