"""The hyper-parameters that ``--tune`` searches, and their ranges. Those on the command line are not searched."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from common.search.space import Choice, Range, Space

FACTORS = Choice((32, 64, 128, 256))

IALS: Space = {
    "factors": FACTORS,
    "alpha": Range(0.5, 20.0),
    "regularization": Range(3.0, 100.0),
    "weight": Choice(("log", "binary")),
    "frequency_scaling": Choice((0.0, 1.0)),
}
BPR: Space = {
    "factors": FACTORS,
    "learning_rate": Range(0.003, 0.1),
    "regularization": Range(0.001, 0.1),
    "user_regularization": Range(0.05, 1.0),
}
EMBEDDING: Space = {
    "factors": FACTORS,
    "popularity": Choice((0.0, 0.25, 0.5, 0.75, 1.0)),
}
RATES: Mapping[str, Range] = {"learned": Range(0.005, 0.1), "history": Range(0.03, 1.0)}
"""Learning rates of an embedding, by its ``user_vectors``."""
LOSSES: Mapping[str, Space] = {
    "softmax": {"temperature": Range(0.03, 0.5)},
    "ccl": {"margin": Choice((0.0, 0.2, 0.4, 0.6, 0.8)), "negative_weight": Range(10.0, 1000.0)},
    "bpr": {},
}
"""Further dimensions of an embedding, by its loss."""


def of(kind: str, hyper: Mapping[str, Any], fixed: Set[str]) -> Space:
    """The space to search.

    Parameters
    ----------
    kind
        ``"ials"``, ``"bpr"`` or ``"embedding"``.
    hyper
        Hyper-parameters of the model; ``user_vectors`` and ``loss`` of an embedding decide its space.
    fixed
        Names that are not searched.
    """
    if kind == "embedding":
        whole: Space = {**EMBEDDING, "learning_rate": RATES[hyper["user_vectors"]], **LOSSES[hyper["loss"]]}
    else:
        whole = {"ials": IALS, "bpr": BPR}[kind]
    return {name: dimension for name, dimension in whole.items() if name not in fixed}
