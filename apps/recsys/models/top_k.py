"""The largest of an array of scores, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Indices of the ``k`` largest scores, the best first; of equal scores the lower index first.

    ``-inf`` marks what must not be ranked; fewer than ``k`` come back when fewer are left.
    """
    import numpy as np

    k = min(k, len(scores))
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > least)
    equal = np.flatnonzero(scores == least)[: k - len(above)]
    found = np.concatenate([above, equal])
    found = found[scores[found] > -np.inf]
    found.sort()
    best: NDArray[np.intp] = found[np.argsort(-scores[found], kind="stable")]
    return best
