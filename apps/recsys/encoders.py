"""From a history to a user's vector, for each kind of model. Its products with the items' vectors are its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Fold = Callable[["NDArray[Any]", "NDArray[np.float32]"], "NDArray[np.float32]"]
"""From items and their values to a vector of shape (factors,)."""

SHORTEST = 1e-12
"""Vectors are taken to be at least this long when they are divided by their length."""


def ridge(item_factors: NDArray[np.float32], hyper: Mapping[str, Any]) -> Fold:
    """``ials``: the least-squares solution for one user (``ials.fold_in``)."""
    from apps.recsys import ials

    shared = ials.gramian(item_factors)
    return lambda items, values: ials.fold_in(shared, item_factors, items, ials.confidence(values, hyper), hyper)


def constant() -> Fold:
    """``popularity``: all users are alike."""
    import numpy as np

    return lambda items, values: np.ones(1, np.float32)


def sums(item_factors: NDArray[np.float32], taste: NDArray[np.float32] | None, *, cosine: bool) -> Fold:
    """``embedding``: the sum of the items' vectors, over the root of their number or, for cosines, over its length.

    Parameters
    ----------
    item_factors
        Shape (items, factors). For cosines each is divided by its length, in place.
    taste
        The items' vectors as parts of users; ``None``: the same ones.
    """
    import numpy as np

    lengths = np.ones(len(item_factors), np.float32)
    if cosine:
        np.sqrt(np.einsum("ij,ij->i", item_factors, item_factors), out=lengths)
        np.maximum(lengths, SHORTEST, out=lengths)
        item_factors /= lengths[:, None]

    def fold(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
        total = lengths[items] @ item_factors[items] if taste is None else taste[items].sum(0)
        size = np.linalg.norm(total) if cosine else len(items) ** 0.5
        vector: NDArray[np.float32] = total / np.float32(max(size, SHORTEST))
        return vector

    return fold
