"""Item vectors as codes: rotation, bits of each dimension, levels.

Scores are products with users' vectors, so an error e of an item's vector costs ``e'Ge`` with G the users' Gramian.
Vectors are rotated onto the eigenvectors of G, where the cost is a weighted sum over dimensions; of those with a small
weighted variance nothing is left. Then dimensions with as many bits are mixed by a random rotation, after which numbers
are nearly normally distributed, as the levels expect. A rotation of items and users together changes no score, so it is
not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.recsys.models.scan.rows import row_lengths
from common.compression import row_grid
from common.compression.book_codes import BookCodes
from common.compression.book_layout import SCALE_BYTES, Layout, layout
from common.compression.books import Books
from common.compression.codes import BLOCK_ROWS
from common.compression.codes import rotation as random_rotation
from common.compression.row_codes import RowCodes
from common.compression.row_grid import Grid
from common.compression.row_levels import shared_bits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLASSES, CLASS_OCTAVES = 11, 0.5
"""Most classes of rows by their lengths below that of the longest row, and octaves from one to the next."""
FEW = 0.002
"""Share of the shortest rows that go to the class above theirs."""
LEAST = 1e-30
"""Smallest weight that divides."""
SEED = 0
"""Seed of rotations, which are the same in every model."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a row may take.

    Attributes
    ----------
    bytes
        Bytes of a row without its scale; of rows in classes their mean.
    dimensions
        Most dimensions that get some; ``None``: any number.
    layers
        Entries of code books that are added in each group of dimensions; 0: levels of each dimension.
    """

    bytes: int
    dimensions: int | None = None
    layers: int = 0

    def shared(
        self, weights: NDArray[np.floating[Any]], counts: NDArray[np.integer[Any]] | None = None
    ) -> NDArray[np.uint8]:
        """Bits of each column, by the columns' weighted variances; or of each column in classes of so many rows."""
        import numpy as np

        if self.dimensions is not None and self.dimensions < weights.shape[-1]:
            each = weights if counts is None else counts @ weights
            weights = np.where(each >= np.sort(each)[-self.dimensions], weights, 0)
        return shared_bits(weights, self.bytes * (1 if counts is None else int(counts.sum())), counts)

    def grouped(self, weights: NDArray[np.floating[Any]], rows: int, *, last: bool = False) -> Layout:
        """Groups of columns with code books, by the columns' weighted variances, of a matrix of so many rows.

        With ``last`` the last column stays and is the last.
        """
        import numpy as np

        if self.dimensions is not None and self.dimensions < len(weights):
            weights = np.where(weights >= np.sort(weights)[-self.dimensions], weights, 0)
        made = layout(weights, size=self.bytes + SCALE_BYTES, rows=rows, layers=self.layers, last=last)
        assert made is not None  # the request has checked that there is one
        return made


def rotation(gramian: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Eigenvalues of a Gramian from large to small, and its eigenvectors as columns."""
    import numpy as np

    values, axes = np.linalg.eigh(gramian.astype(np.float64))
    return np.maximum(values[::-1], 0), np.ascontiguousarray(axes[:, ::-1]).astype(np.float32)


def mixing(bits: NDArray[np.uint8], importance: NDArray[np.float64], *, last: bool = False) -> NDArray[np.float32]:
    """A rotation that mixes the columns that have as many bits, shape (width, width), but the ``last`` one.

    Eigenvectors of sparse data belong to a few items each, whose numbers are far from normal: in 2 bits iALS of 128
    factors loses 7.6 % of N@20 on Gowalla (6,000 users, 32 bytes an item, the nearest levels), and 3.6 % with columns
    mixed.

    Parameters
    ----------
    bits
        Bits of each column, shape (width,).
    importance
        Weights of the columns' squared errors, shape (width,); set to the means of columns that are mixed.
    last
        True to leave the last column as it is.
    """
    import numpy as np

    axes = np.eye(len(bits), dtype=np.float32)
    for _, columns in row_grid.groups(bits[: len(bits) - last]):
        axes[np.ix_(columns, columns)] = random_rotation(len(columns), SEED)
        importance[columns] = importance[columns].mean()
    return axes


def graded(
    rows: NDArray[np.float32], importance: NDArray[np.float64], budget: Budget
) -> tuple[Grid, NDArray[np.uint8]]:
    """Levels for classes of rows by their lengths, with more bits for longer ones, and the class of each row.

    An error costs as much in a long row as in a short one, and the numbers of a long row are larger: with twice the
    length, a bit more a number leaves the same error.

    Parameters
    ----------
    rows
        Shape (rows, width), on axes on which errors count singly.
    importance
        Weights of the columns' squared errors, shape (width,).
    budget
        What a row may take in the mean.
    """
    import numpy as np

    deviations = row_grid.column_deviations(rows)
    lengths = row_grid.row_scales(rows, deviations)
    kinds = _length_classes(lengths)
    counts = np.bincount(kinds)
    squares = np.zeros((len(counts), rows.shape[1]))
    for start in range(0, len(rows), BLOCK_ROWS):
        some, own = rows[start : start + BLOCK_ROWS], kinds[start : start + BLOCK_ROWS]
        for number in np.flatnonzero(np.bincount(own)):
            squares[number] += np.einsum("ij,ij->j", of_class := some[own == number], of_class)
    bits = budget.shared(squares / counts[:, None] * importance, counts)
    return Grid.of(bits, deviations), kinds.astype(np.uint8)


def _length_classes(lengths: NDArray[np.float32]) -> NDArray[np.intp]:
    """Classes of rows by their lengths, from short to long, shape (rows,).

    Rows of usual length are in the midst of a class. ``FEW`` of the shortest rows are no classes of their own, since
    all classes share the 256 codes of scales.
    """
    import numpy as np

    usual = np.median(there) if len(there := lengths[lengths > 0]) else 1
    with np.errstate(divide="ignore"):
        steps = np.rint(np.log2(lengths / usual) / CLASS_OCTAVES)
    found, kinds = np.unique(steps, return_inverse=True)
    first = int(np.searchsorted(np.bincount(kinds).cumsum(), FEW * len(lengths), side="right"))
    first = max(first, int(np.searchsorted(found, found[-1:] - CLASSES)[0]) if len(found) else 0)
    classes: NDArray[np.intp] = np.maximum(kinds, first) - first
    return classes


def rotate(rows: NDArray[np.float32], axes: NDArray[np.float32]) -> None:
    """Multiply the first columns of each row by a square matrix, in place."""
    width = axes.shape[0]
    for start in range(0, len(rows), BLOCK_ROWS):
        span = slice(start, start + BLOCK_ROWS)
        rows[span, :width] = rows[span, :width] @ axes


def unit_deviations(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root of the mean square of each column over rows of length 1."""
    import numpy as np

    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), BLOCK_ROWS):
        some = rows[start : start + BLOCK_ROWS]
        some = some / row_lengths(some)[:, None]
        total += np.einsum("ij,ij->j", some, some)
    found: NDArray[np.float32] = np.sqrt(total / max(1, len(rows))).astype(np.float32)
    return np.maximum(found, np.finfo(np.float32).tiny)


def encoded(
    rows: NDArray[np.float32], weights: NDArray[np.floating[Any]], bits: NDArray[np.uint8], *, cosine: bool
) -> RowCodes:
    """The nearest codes of rows under weights of the columns' squared errors, shape (width,), in one class."""
    deviations = unit_deviations(rows) if cosine else row_grid.column_deviations(rows)
    return RowCodes.of(rows, Grid.of(bits, deviations), weights)


def encoded_alike(
    matrices: dict[str, NDArray[np.float32]],
    importance: Mapping[str, NDArray[np.float64]],
    budget: Budget,
    *,
    by_length: Container[str],
    cosine: bool,
    last: bool,
    after_each: Callable[[], None],
) -> dict[str, RowCodes | BookCodes]:
    """Codes of matrices that are multiplied with each other or with the same users, so that they are rotated alike.

    Parameters
    ----------
    matrices
        Rows by name, shape (n, width) each, on the axes on which errors count singly; taken out as they are encoded.
    importance
        Weights of the columns' squared errors in each.
    budget
        What a row of each may take.
    by_length
        Matrices of which longer rows get more bits (``graded``).
    cosine
        True if the lengths of rows do not matter.
    last
        True to leave the last column as it is (the bias of ``bpr``).
    after_each
        Called after each matrix; an exception that it raises ends the encoding.
    """
    import numpy as np

    total = np.zeros(next(iter(matrices.values())).shape[1])
    for name, rows in matrices.items():
        deviations = unit_deviations(rows) if cosine else row_grid.column_deviations(rows)
        own = deviations.astype(np.float64) ** 2 * importance[name]
        total += own / max(float(own.sum()), LEAST)
    made: dict[str, RowCodes | BookCodes] = {}
    if budget.layers:
        groups = budget.grouped(total, min(len(rows) for rows in matrices.values()), last=last)
        for name in list(matrices):
            rows, own = matrices.pop(name).take(groups.columns, axis=1), importance[name][groups.columns]
            made[name] = BookCodes.of(rows, own, Books.of(rows, own, groups, alike=cosine))
            after_each()
        return made
    bits = budget.shared(total)
    columns = np.flatnonzero((bits > 0) | (np.arange(len(bits)) >= len(bits) - last))
    bits = bits[columns]
    for name in list(matrices):
        rows, own = matrices.pop(name).take(columns, axis=1), importance[name][columns]
        rotate(rows, mixing(bits, own, last=last))
        if name in by_length:
            grid, kinds = graded(rows, own, budget)
            made[name] = RowCodes.of(rows, grid, own, kinds)
        else:
            made[name] = encoded(rows, own, bits, cosine=cosine)
        after_each()
    return made
