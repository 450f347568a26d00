"""The indices of the largest scores, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Indices of the ``k`` largest scores, the best first; of equal scores the lower index first.

    Parameters
    ----------
    scores
        Shape (n,); ``-inf`` for items that must not be ranked.
    k
        Number of indices.

    Returns
    -------
    NDArray
        At most ``k`` indices, fewer if fewer scores are above ``-inf``.

    Examples
    --------
    >>> top_k(np.array([1, 3, -np.inf, 3], np.float32), 3)
    array([1, 3, 0])
    """
    import numpy as np

    k = min(k, len(scores))
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > least)
    equal = np.flatnonzero(scores == least)[: k - len(above)]
    candidates = np.concatenate([above, equal])
    candidates = np.sort(candidates[scores[candidates] > -np.inf])
    best: NDArray[np.intp] = candidates[np.argsort(-scores[candidates], kind="stable")]
    return best
