"""Factors that the library ``implicit`` saved (``model.save("model.npz")``), as they are or as codes.

A file of codes has, for ``item_factors`` and ``user_factors``, the arrays of ``coded.stored`` under their names, and
all other arrays of the file that it was made of. ``load`` decodes them::

    from apps.recsys.models.coded import implicit_file
    model.item_factors, model.user_factors = implicit_file.load("small.npz")
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.models.coded import stored
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUFFIX = ".npz"
ITEMS, USERS = "item_factors", "user_factors"
LARGEST = 1e12
"""Largest number whose products, summed over a row and over all users, float32 holds."""
_LONGEST_HEADER = 1 << 16
_MAGIC = b"\x93NUMPY"
_FLOATS = ("<f4", "<f8")


def shapes(path: Path) -> dict[str, tuple[int, int, int]]:
    """Rows and columns of the factors and bytes of a number, by the headers of a file alone.

    Raises
    ------
    BadInput
        Not such a file; no factors of items and users; factors that are no matrices of floating-point numbers, or not
        as wide as each other; codes already.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {name.removesuffix(".npy"): _header(archive, name) for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile, ValueError, SyntaxError, RecursionError, NotImplementedError, RuntimeError):
        raise BadInput(f"{path}: not a file of NumPy arrays, or damaged", public="factors unreadable") from None
    if stored.names_in(headers):
        raise BadInput(f"{path}: its factors are codes already", public="factors are codes")
    found = {}
    for name in (ITEMS, USERS):
        kind, shape = headers.get(name, ("", ()))
        if kind not in _FLOATS or len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
            raise BadInput(
                f"{path}: has no {name} of floating-point numbers in rows; expected what implicit's model.save writes",
                public="factors unreadable",
            )
        found[name] = (shape[0], shape[1], int(kind[-1]))
    if found[ITEMS][1] != found[USERS][1]:
        raise BadInput(
            f"{path}: {ITEMS} have {found[ITEMS][1]} numbers and {USERS} {found[USERS][1]}", public="factors unreadable"
        )
    return found


def _header(archive: zipfile.ZipFile, name: str) -> tuple[str, tuple[int, ...]]:
    """Type and shape of an array in the archive."""
    with archive.open(name) as stream:
        magic = stream.read(8)
        if magic[:6] != _MAGIC:
            raise ValueError
        size = int.from_bytes(stream.read(2 if magic[6] == 1 else 4), "little")
        if size > _LONGEST_HEADER:
            raise ValueError
        header = ast.literal_eval(stream.read(size).decode("latin-1").strip())
    if header["fortran_order"]:
        raise ValueError
    return str(header["descr"]), tuple(header["shape"])


def factors(path: Path, name: str) -> NDArray[np.float32]:
    """Read a matrix of factors as float32.

    Raises
    ------
    BadInput
        The file is damaged, or has numbers that are not finite.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            numbers = arrays[name]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        raise BadInput(f"{path}: {name} is damaged", public="factors unreadable") from None
    largest = max(float(numbers.max(initial=0)), -float(numbers.min(initial=0)))
    if not np.isfinite(largest):
        raise BadInput(f"{path}: {name} has numbers that are not finite", public="factors unreadable")
    if largest > LARGEST:
        raise BadInput(
            f"{path}: {name} has numbers beyond {LARGEST:g}, whose products float32 does not hold",
            public="factors too large",
        )
    found: NDArray[np.float32] = np.ascontiguousarray(numbers, np.float32)
    return found


def others(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays besides the factors; raises as ``factors``."""
    return dict(_others(path))


def _others(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                if name not in (ITEMS, USERS):
                    yield name, arrays[name]
    except (OSError, ValueError, zipfile.BadZipFile):
        raise BadInput(f"{path}: is damaged, or has arrays of Python objects", public="factors unreadable") from None


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays into a file."""
    import numpy as np

    with path.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # names of arrays are not those of its parameters


def load(path: Path | str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Factors of the items and of the users as float32, from a file of codes.

    Raises
    ------
    BadInput
        Not a file of codes, or damaged.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            made = {name: arrays[name] for name in arrays.files}
        return stored.decoded(made, ITEMS), stored.decoded(made, USERS)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
        raise BadInput(f"{path}: not a file of codes, or damaged", public="factors unreadable") from None
