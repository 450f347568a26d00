"""A spectrum as codes: rows of ``V w`` in a few bits a number, decoded block by block while items are scored.

``w`` are the roots of what passes of each eigenvalue, or of what a filter takes from it. So one product of the rows is
the term of the scores, and only the rows are stored. The float32 numbers of all items never exist at once: that costs
10 to 30 ms a question on Gowalla with 512 eigenvalues, and saves 80 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.models import weights
from common.compression.codes import BLOCK_ROWS, Codes
from common.compression.row_codes import RowCodes
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Sample = tuple[NDArray[Any], NDArray[np.float32]]


class CodedSpectrum:
    """What a filter adds to the scores: ``- W W' x`` with W as codes (see ``filter.SpectralTerm``)."""

    def __init__(self, codes: Codes | RowCodes) -> None:
        self.codes = codes

    def product(self, questions: NDArray[np.float32]) -> NDArray[np.float32]:
        """The term for columns, shape (items, n); a new array."""
        import numpy as np

        codes, workspace = self.codes, self.codes.workspace()
        rows = np.flatnonzero(questions.any(1))
        coefficients = np.zeros((codes.width, questions.shape[1]), np.float32)
        for start in range(0, len(rows), BLOCK_ROWS):
            some = rows[start : start + BLOCK_ROWS]
            coefficients -= codes.decode(some, workspace).T @ questions[some]
        out = np.empty_like(questions)
        for start in range(0, len(codes), BLOCK_ROWS):
            span = slice(start, start + BLOCK_ROWS)
            np.matmul(codes.decode(span, workspace), coefficients, out=out[span])
        return out

    def between(self, items: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.float64]:
        """The term's matrix for some rows and columns, shape (items, rows)."""
        import numpy as np

        decoded = self.codes.decode(items).astype(np.float64)
        term: NDArray[np.float64] = -(decoded @ self.codes.decode(rows).astype(np.float64).T)
        return term


class CodedScorer:
    """Scores ``D^b W W' D^-b x`` by the spectrum alone, with W as codes.

    Parameters
    ----------
    codes
        W.
    counts
        Users of each item, shape (items,).
    degree_power
        b.
    """

    def __init__(self, codes: Codes | RowCodes, counts: NDArray[np.int32], *, degree_power: float) -> None:
        import numpy as np

        self.items, self._codes = len(codes), codes
        self._weights = np.maximum(counts, 1).astype(np.float32) ** np.float32(degree_power)

    def workspace(self, users: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take the scores of as many users, and a block of decoded rows."""
        import numpy as np

        return np.empty((users, self.items), np.float32), self._codes.workspace()

    def scores(
        self, histories: Sequence[Sample], workspace: tuple[NDArray[np.float32], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Score all items; see ``Scorer``."""
        import numpy as np

        scores, decoded = workspace[0][: len(histories)], workspace[1]
        vectors = np.stack([self._fold_in(items, decoded) for items, _ in histories])
        for start in range(0, self.items, BLOCK_ROWS):
            span = slice(start, start + BLOCK_ROWS)
            np.matmul(vectors, self._codes.decode(span, decoded).T, out=scores[:, span])
        scores *= self._weights
        return scores

    def _fold_in(self, items: NDArray[Any], workspace: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        vector = np.zeros(self._codes.width, np.float32)
        for start in range(0, len(items), BLOCK_ROWS):
            some = items[start : start + BLOCK_ROWS]
            vector += (1 / self._weights[some]) @ self._codes.decode(some, workspace)
        return vector

    def contributions(
        self, items: NDArray[Any], values: NDArray[np.float32], rows: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Split scores; see ``Scorer``."""
        import numpy as np

        had = self._codes.decode(items).astype(np.float64) / self._weights[items, None]
        parts: NDArray[np.float64] = (self._codes.decode(rows) * self._weights[rows, None]).astype(np.float64) @ had.T
        return parts

    def similarities(self, row: int) -> NDArray[np.float32]:
        """Cosines of one item with all items; see ``Scorer``."""
        import numpy as np

        codes, workspace = self._codes, self._codes.workspace()
        (own,) = codes.decode(np.array([row]))
        cosines = np.empty(self.items, np.float32)
        for start in range(0, self.items, BLOCK_ROWS):
            decoded = codes.decode(slice(start, start + BLOCK_ROWS), workspace)
            lengths = np.sqrt(np.einsum("ij,ij->i", decoded, decoded))
            cosines[start : start + BLOCK_ROWS] = (decoded @ own) / np.maximum(lengths, np.float32(1e-20))
        cosines /= np.maximum(np.linalg.norm(own), np.float32(1e-20))
        return cosines

    def closeness(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Cosines of some items with each other; see ``Scorer``."""
        import numpy as np

        vectors = self._codes.decode(rows)
        vectors /= np.maximum(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)), np.float32(1e-20))[:, None]
        cosines: NDArray[np.float32] = vectors @ vectors.T
        return cosines

    def item_vectors(self) -> NDArray[np.float32]:
        """``D^b W``, float32 of shape (items, width): what ``recsys export`` writes."""
        import numpy as np

        vectors = np.empty((self.items, self._codes.width), np.float32)
        workspace = self._codes.workspace()
        for start in range(0, self.items, BLOCK_ROWS):
            span = slice(start, start + BLOCK_ROWS)
            vectors[span] = self._codes.decode(span, workspace)
        vectors *= self._weights[:, None]
        return vectors


def read_codes(path: Path, *, factors: int, bits: int) -> Codes:
    """The spectrum of a linear model as codes of ``bits`` bits, with ``factors`` numbers a row.

    Raises
    ------
    BadInput
        As ``weights.read``, or a scale is negative or not finite.
    """
    import numpy as np

    packed, scales, unit = (weights.tensor(path, name) for name in (weights.SPECTRUM, weights.SCALES, weights.UNIT))
    with np.errstate(over="ignore", invalid="ignore"):
        largest = scales.max(initial=0).astype(np.float32) * unit * np.float32(1 << bits)
    if not (np.isfinite(largest).all() and (unit >= 0).all() and (scales >= 0).all()):
        raise BadInput(
            f"{path}: {weights.SCALES} or {weights.UNIT} has numbers that cannot be scales", public="weights unreadable"
        )
    return Codes(packed, scales, unit, factors, bits)


def code_tensors(codes: Codes) -> dict[str, NDArray[Any]]:
    """A spectrum as codes, by the names of its tensors."""
    return {weights.SPECTRUM: codes.packed, weights.SCALES: codes.scales, weights.UNIT: codes.unit}
