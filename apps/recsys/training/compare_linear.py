"""Settings of a linear model that are compared, and their rankings of the same users.

Candidates share the products with the interactions and the eigenvectors. A small log is applied to a block of users at
once; of a large one each user's readers are asked (``readers``), as the model will.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from apps.recsys.models.linear.log import Log
from apps.recsys.models.linear.readers import POPULAR, Readers
from apps.recsys.models.linear.spectral import response
from apps.recsys.models.top_k import top_k
from apps.recsys.training.linear_candidates import Candidate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Powers = Callable[[float], NDArray[np.float32]]

MANY = 10
"""Scores left per wanted one above which each column is searched by itself: sorting more would take much memory."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ranks by several candidates that share the products with the interactions and the eigenvectors."""

    log: Log
    degrees: NDArray[np.float32]
    """Users of each item, shape (items, 1)."""
    spectrum: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    filter_factors: int
    """Most eigenvalues of a filter; a spectral model uses all."""
    readers: Readers | None = None
    """The users of each item, where single histories are asked for."""

    def powers(self) -> Powers:
        """Return a function for powers of ``degrees``, each of which it computes once."""
        import numpy as np

        return cache(lambda power: self.degrees ** np.float32(power))

    def rankings(
        self,
        histories: list[NDArray[Any]],
        candidates: list[Candidate],
        depth: int,
        powers: Powers,
        hidden: tuple[int, NDArray[Any]] | None = None,
    ) -> Iterator[list[NDArray[np.intp]]]:
        """Yield the rankings of all histories by each candidate.

        Parameters
        ----------
        histories
            Rows of items; a single one with ``readers``.
        candidates
            All of the log's user power and of one power of the history's items (``Candidate.asking``); of one item
            power too, that of the spectrum, if there is one.
        depth
            Items of a ranking.
        powers
            Of ``degrees``.
        hidden
            A user and his hidden items, where the readers have them too: scores are as if they had not.
        """
        import numpy as np

        shape, first = (len(self.degrees), len(histories)), candidates[0]
        own = np.concatenate(histories), np.repeat(np.arange(len(histories)), [len(items) for items in histories])
        shared, scores, coefficients = np.empty(shape, np.float32), np.empty(shape, np.float32), None
        if any(candidate.form == "filter" for candidate in candidates):
            self._shared(histories, own, powers(-first.asking), scores, shared, -1 if hidden is None else hidden[0])
        if self.spectrum is not None:
            scores[:] = 0
            scores[own] = powers(-first.degree_power)[own[0], 0]
            coefficients = self.spectrum[0].T @ scores
        best = None
        for candidate in candidates:
            b, a = candidate.degree_power, candidate.item_power
            if coefficients is not None and self.spectrum is not None and candidate.spectral:
                used = slice(self.filter_factors if candidate.form == "filter" else None)
                vectors, eigenvalues = self.spectrum[0][:, used], self.spectrum[1][used]
                passed = response(eigenvalues, candidate.saturation)
                if candidate.form == "filter":
                    passed -= eigenvalues
                np.matmul(vectors, passed[:, None] * coefficients[used], out=scores)
                if candidate.form == "filter":
                    # All scores of this candidate times D^(a - b): ``shared`` stays as it is.
                    scores *= powers(a)
                    scores += shared
                    scores *= powers(b - a)
                else:
                    scores *= powers(b)
            else:
                np.multiply(shared, powers(b - a), out=scores)
            if candidate.form == "filter":
                scores += POPULAR * self.degrees
                if hidden is not None:
                    items = hidden[1]
                    fewer = np.maximum(self.degrees[items, 0] - 1, 1)
                    scores[items, 0] = shared[items, 0] * fewer ** np.float32(b - a)
            scores[own] = -np.inf
            best = best_columns(scores, depth, best)
            yield list(best)

    def _shared(
        self,
        histories: list[NDArray[Any]],
        own: tuple[NDArray[Any], NDArray[Any]],
        asking: NDArray[np.float32],
        questions: NDArray[np.float32],
        out: NDArray[np.float32],
        but: int,
    ) -> None:
        """Compute ``R' Du^-u R D^-(a + b) x``, shape (items, n), by readers without the user ``but``; ``questions`` is
        overwritten."""
        if self.readers is not None:
            (items,) = histories
            found = self.readers.shared(items, asking[items, 0])
            kept = self.readers.kept(found)
            out[:, 0] = self.readers.added(found, kept[found.users[kept] != but])
            return
        questions[:] = 0
        questions[own] = asking[own[0], 0]
        self.log.gram(questions, out)


def best_columns(
    scores: NDArray[np.float32], depth: int, likely: Sequence[NDArray[np.intp]] | None = None
) -> list[NDArray[np.intp]]:
    """Rows of the largest scores of each column, as ``top_k`` orders them.

    Parameters
    ----------
    scores
        Shape (items, n).
    depth
        Number of rows.
    likely
        Rows that are likely among them, for each column, from similar scores. The ``depth``-th largest score is at
        least the smallest one of theirs, so all smaller ones are left out at once.

    Examples
    --------
    >>> best_columns(np.array([[1.0, 0.0], [3.0, 2.0], [2.0, 5.0]], np.float32), 2)
    [array([1, 2]), array([2, 1])]
    """
    import numpy as np

    columns, mask = np.arange(scores.shape[1]), None
    if likely is not None and all(len(rows) == depth for rows in likely):
        least = scores[np.stack(list(likely)), columns[:, None]].min(1)
        mask = scores >= np.maximum(least, np.finfo(np.float32).min)
    if mask is None or int(np.count_nonzero(mask)) > MANY * depth * len(columns):
        return [top_k(np.ascontiguousarray(scores[:, column]), depth) for column in columns]
    rows, owners = np.nonzero(mask)
    order = np.lexsort((rows, -scores[rows, owners], owners))
    rows, owners = rows[order], owners[order]
    firsts = np.searchsorted(owners, [*columns, len(columns)])
    return [rows[start : min(start + depth, stop)] for start, stop in pairwise(firsts)]
