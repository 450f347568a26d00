"""Confidence of an interaction in implicit feedback, from its value (Hu, Koren, Volinsky 2008)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WEIGHTS = ("log", "value", "binary")
"""How a value becomes a weight: log(1 + value), the value itself, or 1."""


def confidence(values: NDArray[np.float32], hyper: Mapping[str, Any]) -> NDArray[np.float32]:
    """Confidence of interactions: ``alpha * weight(value)``, float32, in a new array."""
    import numpy as np

    if hyper["weight"] == "binary":
        return np.full(len(values), hyper["alpha"], np.float32)
    weights = np.log1p(values) if hyper["weight"] == "log" else values.copy()
    weights *= np.float32(hyper["alpha"])
    return weights
