"""Which settings ``--tune`` searches, and where: one table. What the command line fixes is not searched."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these values."""

    values: tuple[int | float | str, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two, drawn evenly by its logarithm."""

    low: float
    high: float


Dimension = Choice | Range
Space = Mapping[str, Dimension]

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
"""Of an embedding, by its ``user_vectors``."""
LOSSES: Mapping[str, Space] = {
    "softmax": {"temperature": Range(0.03, 0.5)},
    "ccl": {"margin": Choice((0.0, 0.2, 0.4, 0.6, 0.8)), "negative_weight": Range(10.0, 1000.0)},
    "bpr": {},
}
"""Of an embedding, by its loss."""


def of(kind: str, hyper: Mapping[str, Any], fixed: Set[str]) -> Space:
    """The space of a kind of model without what is ``fixed``."""
    if kind == "embedding":
        whole: Space = {**EMBEDDING, "learning_rate": RATES[hyper["user_vectors"]], **LOSSES[hyper["loss"]]}
    else:
        whole = {"ials": IALS, "bpr": BPR}[kind]
    return {name: dimension for name, dimension in whole.items() if name not in fixed}


def to_json(space: Space) -> dict[str, dict[str, Any]]:
    """For the record."""
    return {name: asdict(dimension) for name, dimension in space.items()}
