"""Settings of a linear model that are compared, and their rankings of the same users.

Candidates share the products with the interactions and the eigenvectors. A small log is applied to a block of users at
once; of a large one each user's readers are asked (``readers``), as the model will.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from apps.recsys.models.linear.filter import response, shared_scores
from apps.recsys.models.linear.log import Log
from apps.recsys.models.linear.readers import Readers, ReaderScores
from apps.recsys.models.top_k import top_k

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FINER_POWER, FINER_SATURATION = 0.05, 2**0.5
"""Steps from the best candidate to those that are compared after it."""
MANY = 10
"""Scores left per wanted one above which each column is searched by itself: sorting more would take much memory."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A form of the model with its two numbers."""

    form: str
    degree_power: float
    saturation: float
    """Infinite for a filter without a spectrum."""

    @property
    def settings(self) -> dict[str, Any]:
        """Its hyper-parameters; without a spectrum the saturation has no meaning, and is 1, as the ridge of EASE."""
        saturation = self.saturation if math.isfinite(self.saturation) else 1.0
        return {"form": self.form, "degree_power": self.degree_power, "saturation": saturation, "ridge": 1.0}

    def __str__(self) -> str:
        return f"form={self.form} degree_power={self.degree_power:g} saturation={self.saturation:g}"

    def neighbours(self, *, powers: bool, saturations: bool) -> list[Candidate]:
        """Candidates between this one and those of the grid, along the numbers that are open; without this one."""
        near = [round(self.degree_power + step, 3) for step in (-FINER_POWER, 0.0, FINER_POWER)]
        steps = (1 / FINER_SATURATION, 1.0, FINER_SATURATION) if math.isfinite(self.saturation) else (1.0,)
        made = [
            Candidate(self.form, power, round(self.saturation * step, 4))
            for power in (near if powers else near[1:2])
            for step in (steps if saturations else (1.0,))
            if 0 <= power <= 1
        ]
        return [candidate for candidate in made if candidate != self]


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

    def by_readers(self, power: float) -> ReaderScores | None:
        """Scores of a filter by the readers, for one degree power."""
        import numpy as np

        return ReaderScores(self.readers, self.degrees[:, 0], np.float32(power)) if self.readers is not None else None

    def rankings(
        self,
        histories: list[NDArray[Any]],
        power: float,
        candidates: list[Candidate],
        depth: int,
        by_readers: ReaderScores | None = None,
    ) -> Iterator[list[NDArray[np.intp]]]:
        """Yield the rankings of all histories by each candidate; all have the degree power ``power``.

        With ``by_readers`` (for this power) there is one history.
        """
        import numpy as np

        shape, b = (len(self.degrees), len(histories)), np.float32(power)
        own = np.concatenate(histories), np.repeat(np.arange(len(histories)), [len(items) for items in histories])
        filters = any(candidate.form == "filter" for candidate in candidates)
        shared = np.empty(shape, np.float32)
        # By readers alone there are no questions in columns: pages of a million items that would be zeroed.
        questions = np.zeros(shape if by_readers is None or self.spectrum is not None else 0, np.float32)
        if questions.size:
            questions[own] = 1
        if filters and by_readers is None:
            shared_scores(self.log, questions, shared, self.degrees, b)
        elif questions.size:
            questions *= self.degrees**-b
        if filters and by_readers is not None:
            by_readers.scores(histories[0], shared[:, 0])
        if filters:
            shared[own] = -np.inf
        coefficients = self.spectrum[0].T @ questions if self.spectrum is not None else None
        added, best = questions, None
        for candidate in candidates:
            scores = shared
            if coefficients is not None and self.spectrum is not None and math.isfinite(candidate.saturation):
                used = slice(self.filter_factors if candidate.form == "filter" else None)
                vectors, eigenvalues = self.spectrum[0][:, used], self.spectrum[1][used]
                passed = response(eigenvalues, candidate.saturation)
                if candidate.form == "filter":
                    passed -= eigenvalues
                scores = np.matmul(vectors, passed[:, None] * coefficients[used], out=added)
                scores *= self.degrees**b
                if candidate.form == "filter":
                    scores += shared
                else:
                    scores[own] = -np.inf
            best = best_columns(scores, depth, best)
            yield list(best)


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
