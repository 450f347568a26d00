"""Codes of item vectors in ``weights.safetensors``, as ``recsys compress`` writes them.

A matrix NAME has six tensors: ``NAME``, the packed codes, uint8 of shape (bytes,); ``NAME.scales``, uint8 of shape
(items,); and ``NAME.bits``, uint8 of shape (classes, factors), ``NAME.deviations``, float32 of shape (factors,),
``NAME.firsts``, uint8, and ``NAME.units``, float32, both of shape (classes,): the levels
(``common.compression.row_codes``). The manifest's ``codes`` has the bytes of a row of each: their mean, rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.models import weights
from common.compression.row_codes import SCALE_BYTES, RowCodes
from common.compression.row_grid import Grid
from common.compression.row_levels import MOST_BITS
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GRID = ("bits", "deviations", "firsts", "units")
"""Tensors of the levels, which have no row of each item, by the ends of their names."""
MOST_CLASSES = 64
"""Classes of rows that a file may have."""


def is_coded(manifest: Mapping[str, Any]) -> bool:
    """True for a model whose item vectors are such codes."""
    return bool(manifest.get("codes"))


def tensors(name: str, codes: RowCodes) -> dict[str, NDArray[Any]]:
    """A matrix of codes, by the names of its tensors."""
    made: dict[str, NDArray[Any]] = {name: codes.packed, f"{name}.scales": codes.scales}
    return made | {f"{name}.{part}": getattr(codes.grid, part) for part in GRID}


def row_size(codes: RowCodes) -> int:
    """Bytes of a row with its scale: the mean, rounded up."""
    return -(-codes.stored_bytes // max(1, len(codes)))


def of_tensors(stored: Mapping[str, NDArray[Any]], name: str) -> RowCodes:
    """The codes of a matrix among stored tensors."""
    grid = Grid(*(stored[f"{name}.{part}"] for part in GRID))
    return RowCodes(stored[name], stored[f"{name}.scales"], grid)


def read(path: Path, name: str) -> RowCodes:
    """Read the codes of a matrix.

    Raises
    ------
    BadInput
        As ``weights.read``; bits that are not those of the codes; classes that are none; a number that cannot be a
        scale.
    """
    import numpy as np

    codes = of_tensors(
        {each: weights.tensor(path, each) for each in (name, *(f"{name}.{part}" for part in ("scales", *GRID)))}, name
    )
    grid = codes.grid
    numbers = np.concatenate([grid.units, grid.deviations])
    if (
        not len(grid.firsts) == len(grid.units) == len(grid.bits)
        or grid.firsts[0]
        or (np.diff(grid.firsts.astype(np.int64)) <= 0).any()
    ):
        raise BadInput(f"{path}: {name}.firsts are no classes of its rows", public="weights unreadable")
    if grid.bits.max(initial=0) > MOST_BITS or codes.expected_bytes != len(codes.packed):
        raise BadInput(f"{path}: {name}.bits are not those of its codes", public="weights unreadable")
    if not (np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise BadInput(f"{path}: {name} has numbers that cannot be scales", public="weights unreadable")
    return codes


def required(manifest: Mapping[str, Any]) -> dict[str, tuple[str, list[int | range]]]:
    """Type and shape of each tensor of a model's codes, or a range of its sizes, by its name."""
    items, factors = manifest["items"], manifest["factors"]
    found: dict[str, tuple[str, list[int | range]]] = {}
    for name, size in manifest["codes"].items():
        found[name] = ("U8", [range(items * (size - SCALE_BYTES) + 1)])
        found[f"{name}.scales"] = ("U8", [items])
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
    if f"{name}.bits" not in stored:
        return weights.decoded(stored, name)
    codes = of_tensors(stored, name)
    return codes.decode(slice(0, len(codes)))


def appended(stored: Mapping[str, NDArray[Any]], name: str, rows: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The codes of a matrix with further rows, which get the levels that there are."""
    codes = of_tensors(stored, name)
    more = codes.with_rows(rows)
    return {name: more.packed, f"{name}.scales": more.scales}
