"""Codes of item vectors in ``weights.safetensors``, as ``recsys compress`` writes them.

A matrix NAME has five tensors: ``NAME``, the packed codes, uint8 of shape (items, bytes); ``NAME.scales``, uint8 of
shape (items,); ``NAME.unit``, float32 of shape (1,); ``NAME.bits``, uint8, and ``NAME.deviations``, float32, of shape
(factors,) (``common.compression.row_codes``). The manifest's ``codes`` has the bytes of a row of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.models import weights
from common.compression.row_codes import MOST_BITS, SCALE_BYTES, RowCodes, row_bytes
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PARTS = ("scales", "unit", "bits", "deviations")
"""Tensors besides the codes, by the ends of their names."""
SHARED = ("unit", "bits", "deviations")
"""Those of them that have no row of each item."""


def is_coded(manifest: Mapping[str, Any]) -> bool:
    """True for a model whose item vectors are such codes."""
    return bool(manifest.get("codes"))


def is_shared(name: str) -> bool:
    """True for a tensor that belongs to codes and has no row of each item."""
    return name.rpartition(".")[2] in SHARED and "." in name


def tensors(name: str, codes: RowCodes) -> dict[str, NDArray[Any]]:
    """A matrix of codes, by the names of its tensors."""
    made: dict[str, NDArray[Any]] = {name: codes.packed}
    return made | {f"{name}.{part}": getattr(codes, part) for part in PARTS}


def of_tensors(stored: Mapping[str, NDArray[Any]], name: str) -> RowCodes:
    """The codes of a matrix among stored tensors."""
    return RowCodes(stored[name], *(stored[f"{name}.{part}"] for part in PARTS))


def read(path: Path, name: str) -> RowCodes:
    """Read the codes of a matrix.

    Raises
    ------
    BadInput
        As ``weights.read``; the bits of the columns are other than the bytes of a row, or a number cannot be a scale.
    """
    import numpy as np

    codes = of_tensors(
        {each: weights.tensor(path, each) for each in (name, *(f"{name}.{part}" for part in PARTS))}, name
    )
    numbers = np.concatenate([codes.unit, codes.deviations])
    bits = int(codes.bits.sum(dtype=np.int64))
    if codes.bits.max(initial=0) > MOST_BITS or row_bytes(bits) - SCALE_BYTES != codes.packed.shape[1]:
        raise BadInput(f"{path}: {name}.bits are not those of its codes", public="weights unreadable")
    if not (np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise BadInput(f"{path}: {name} has numbers that cannot be scales", public="weights unreadable")
    return codes


def required(manifest: Mapping[str, Any]) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor of a model's codes, by its name."""
    items, factors = manifest["items"], manifest["factors"]
    found = {}
    for name, size in manifest["codes"].items():
        found[name] = ("U8", [items, size - SCALE_BYTES])
        found[f"{name}.scales"] = ("U8", [items])
        found[f"{name}.unit"] = ("F32", [1])
        found[f"{name}.bits"] = ("U8", [factors])
        found[f"{name}.deviations"] = ("F32", [factors])
    return found


def decoded(stored: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    """A matrix of factors among stored tensors as float32, whatever it is stored as."""
    if f"{name}.bits" not in stored:
        return weights.decoded(stored, name)
    codes = of_tensors(stored, name)
    return codes.decode(slice(0, len(codes)))


def appended(stored: Mapping[str, NDArray[Any]], name: str, rows: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The codes of a matrix with further rows, which get the bits and deviations that the columns have."""
    import numpy as np

    from common.compression.row_codes import nearest, packed_rows, scale_codes

    codes = of_tensors(stored, name)
    found, scales = nearest(rows, codes.bits, codes.deviations, np.ones(codes.width, np.float32))
    scales = np.minimum(scales, codes.unit[0])
    more = {name: packed_rows(found, codes.bits), f"{name}.scales": scale_codes(scales, codes.unit)}
    return {each: np.concatenate([stored[each], added]) for each, added in more.items()}
