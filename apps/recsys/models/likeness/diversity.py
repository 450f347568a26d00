"""Lists of items that differ from each other: maximal marginal relevance.

Carbonell and Goldstein, "The use of MMR, diversity-based reranking for reordering documents and producing summaries",
SIGIR 1998. From a shortlist D, the next item of a list S is::

    argmax over i in D \\ S of  (1 - x) r_i - x max over j in S of s_ij

r are the scores of the shortlist, brought to 0..1 (the last one has 0), since scores of different models have different
scales; s are cosines of items, as ``recsys similar`` has them; x is the ``--diversity``. The maximum over nothing is 0,
so the best item comes first; x = 0 changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.models.scorers import Scorer

SHORTLIST_TIMES, MOST_SHORTLIST = 10, 1000
"""Items of the shortlist for each item of the list; most items of a shortlist that is longer than its list."""


def shortlist(k: int, diversity: float) -> int:
    """Number of items that a list of ``k`` is chosen from.

    Examples
    --------
    >>> shortlist(10, 0.3), shortlist(10, 0.0), shortlist(400, 0.3), shortlist(4000, 0.3)
    (100, 10, 1000, 4000)
    """
    return max(k, min(SHORTLIST_TIMES * k, MOST_SHORTLIST)) if diversity else k


def rerank(scores: NDArray[Any], closeness: NDArray[np.float32], k: int, diversity: float) -> NDArray[np.intp]:
    """Choose items of a shortlist by maximal marginal relevance.

    Parameters
    ----------
    scores
        Scores of the shortlist, the largest first, shape (n,).
    closeness
        Cosines of its items, shape (n, n).
    k
        Number of items to choose.
    diversity
        x, from 0 to 1.

    Returns
    -------
    NDArray
        Indices of at most ``k`` items in the order in which they are chosen; of equals the first.

    Examples
    --------
    >>> alike = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], np.float32)
    >>> rerank(np.array([3.0, 2.9, 1.0]), alike, 3, 0.5)
    array([0, 2, 1])
    """
    import numpy as np

    count = len(scores)
    chosen = np.empty(min(k, count), np.intp)
    if not count:
        return chosen
    span = float(scores[0]) - float(scores[-1])
    relevance = (scores.astype(np.float64) - float(scores[-1])) / (span or 1.0)
    relevance *= 1 - diversity
    nearest, left = np.zeros(count), np.ones(count, bool)
    for place in range(len(chosen)):
        marginal = np.where(left, relevance - diversity * nearest, -np.inf)
        best = int(marginal.argmax())
        chosen[place], left[best] = best, False
        nearest = closeness[best].astype(np.float64) if place == 0 else np.maximum(nearest, closeness[best])
    return chosen


def diverse(best: Sequence[tuple[int, float]], scorer: Scorer, k: int, diversity: float) -> Sequence[tuple[int, float]]:
    """Choose ``k`` of the best rows with their scores, the best first."""
    import numpy as np

    if not diversity or len(best) < 2:
        return best[:k]
    rows = np.array([row for row, _ in best], np.int64)
    scores = np.array([score for _, score in best])
    return [best[index] for index in rerank(scores, scorer.closeness(rows), k, diversity)]
