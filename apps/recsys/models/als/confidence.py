"""Confidence of an interaction in implicit feedback, from its value (Hu, Koren, Volinsky 2008)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WEIGHTS = ("log", "value", "binary")
"""Weight of a value: log(1 + value), the value itself, or 1."""


def confidence(values: NDArray[np.float32], hyper: Mapping[str, Any]) -> NDArray[np.float32]:
    """Confidence of interactions: ``alpha * weight(value)``.

    Parameters
    ----------
    values
        Values of the interactions, shape (n,).
    hyper
        Has ``alpha``, and ``weight``, one of ``WEIGHTS``.

    Returns
    -------
    NDArray
        A new array, shape (n,), float32.

    Examples
    --------
    >>> confidence(np.array([1, 3], np.float32), {"alpha": 2.0, "weight": "value"})
    array([2., 6.], dtype=float32)
    """
    import numpy as np

    if hyper["weight"] == "binary":
        return np.full(len(values), hyper["alpha"], np.float32)
    weights = np.log1p(values) if hyper["weight"] == "log" else values.copy()
    weights *= np.float32(hyper["alpha"])
    return weights
