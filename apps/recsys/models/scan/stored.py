"""Codes of the items in the order of their vectors' lengths, as a training writes them for a large catalogue.

A score is at most the product of two lengths, so a list is found in the first few positions of that order
(``scanner``). A code of 8 bits a number is a quarter of the float32 row, and the file says how far it is from the row:
scores by codes are bounds, and the best items are scored again from the rows themselves. Hence lists are exact, and no
recall has to be measured.

``scan.codes.npy`` has the codes, int8, one item after the other; ``scan.items.npy``, int32, the item at each position;
``scan.numbers.npy``, float32, three numbers of each position: the scale of its codes, the length of what is missing in
them, and the length of the vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import NpyWriter
from apps.recsys.models import weights
from apps.recsys.models.coded import stored as codes
from apps.recsys.models.coded.rows import CodedRows
from apps.recsys.models.linear.spectral import spectral_rows
from apps.recsys.models.scan.rows import BLOCK, ItemRows, Rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST_ITEMS = 1 << 16
"""Items from which a catalogue is written so. The product with 65,536 vectors of 64 numbers takes 0.6 ms."""
CODES, ITEMS, NUMBERS = "scan.codes.npy", "scan.items.npy", "scan.numbers.npy"
TYPES = {CODES: "|i1", ITEMS: "<i4", NUMBERS: "<f4"}
SCALE, MISSING, LENGTH = range(3)
"""Columns of ``scan.numbers.npy``."""
LARGEST = 127
"""Largest code; codes are symmetric about 0."""


def supports(kind: str, hyper: Mapping[str, Any]) -> bool:
    """True for a model that scores by products with vectors which need not be in memory.

    A user vector that is learned from samples of all vectors, and a prior, do. A spectrum of a few bits a number stays
    as it is, since the codes here have eight.
    """
    if kind == "linear":
        return bool(hyper["form"] == "spectral" and hyper.get("bits", 32) == 32)
    if kind == "embedding":
        return hyper.get("user_vectors", "history") == "history" and not hyper.get("prior")
    return kind in ("ials", "bpr")


def applies(kind: str, hyper: Mapping[str, Any], items: int) -> bool:
    """True for a model whose folder gets the files."""
    return items >= LEAST_ITEMS and supports(kind, hyper)


def writing_bytes(items: int, factors: int) -> int:
    """Memory of ``write``: lengths, their order, numbers of users, and blocks of rows with their codes."""
    return 24 * items + 24 * BLOCK * factors if items >= LEAST_ITEMS else 0


def is_there(manifest: Mapping[str, Any]) -> bool:
    """True for a model folder that has the files."""
    return CODES in manifest["files"]


def sizes(items: int, factors: int) -> dict[str, int]:
    """Numbers that each of the files has."""
    return {CODES: items * factors, ITEMS: items, NUMBERS: 3 * items}


def vectors(directory: Path, kind: str, hyper: Mapping[str, Any], *, coded: bool = False) -> Rows:
    """The vectors by which a model scores, on disk or as codes: of length 1 where it compares cosines.

    Raises
    ------
    BadInput
        As ``ItemRows``.
    """
    if kind == "linear":
        path = directory / weights.WEIGHTS
        return spectral_rows(path, weights.read_counts(path), hyper)
    path = directory / weights.WEIGHTS
    rows: Rows = CodedRows(codes.read(path, weights.ITEMS)) if coded else ItemRows(path)
    if kind == "embedding" and hyper["loss"] != "bpr":
        rows.normalise()
    return rows


def write(directory: Path, kind: str, hyper: Mapping[str, Any], *, coded: bool = False) -> None:
    """Write the codes of a model whose weights are in a folder, if it has many items and ``supports`` it.

    With ``coded`` the weights are codes of fewer bits, and lists are those of the vectors that these stand for.

    Parameters
    ----------
    directory
        The folder.
    kind, hyper
        Kind and hyper-parameters of the model.
    """
    import numpy as np

    if not supports(kind, hyper):
        return
    rows = vectors(directory, kind, hyper, coded=coded)
    if not applies(kind, hyper, len(rows)):
        return
    lengths = np.empty(len(rows), np.float32)
    for span, block in rows.blocks():
        lengths[span] = np.sqrt(np.einsum("ij,ij->i", block, block))
    order = np.argsort(-lengths, kind="stable").astype(np.int32)
    with (
        NpyWriter(directory / CODES, TYPES[CODES]) as numbered,
        NpyWriter(directory / ITEMS, TYPES[ITEMS]) as items,
        NpyWriter(directory / NUMBERS, TYPES[NUMBERS]) as numbers,
    ):
        for start in range(0, len(order), BLOCK):
            some = order[start : start + BLOCK]
            made, scales, missing = encoded(rows[some])
            numbered.append(made.ravel())
            items.append(some)
            numbers.append(np.stack([scales, missing, lengths[some]], axis=1).ravel())


def encoded(
    vectors: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Codes of some vectors, their scales, and the lengths of what is missing in them.

    Parameters
    ----------
    vectors
        Shape (n, factors).

    Returns
    -------
    tuple
        int8 of shape (n, factors), and float32 of shape (n,) twice.
    """
    import numpy as np

    scales = np.abs(vectors).max(1) / np.float32(LARGEST)
    codes = np.rint(vectors / np.maximum(scales, np.finfo(np.float32).tiny)[:, None])
    rest = vectors - codes * scales[:, None]
    missing: NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", rest, rest))
    return codes.astype(np.int8), scales, missing
