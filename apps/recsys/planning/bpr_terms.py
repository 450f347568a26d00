"""What ``bpr`` holds: all interactions, both sides' factors, and what finding a user anew takes."""

from __future__ import annotations

from apps.recsys.models.bpr import COMPARED
from apps.recsys.models.embedding.user_encoders import POSITIVE_ROWS
from common.memory.footprint import Term

PAIRS = 5
"""Arrays of a known item by a compared one that are alive together in ``user_encoders.fold_in_newton``."""


def terms(*, users: int, interactions: int, factors: int) -> list[Term]:
    """The phases ``arrange`` (the matrix) and ``fit`` (``bpr.fit``); the items' factors are not among them."""
    return [
        Term("interactions", 8 * interactions + 8 * users, "analytic", ("arrange", "fit")),
        Term("user factors", 4 * users * factors, "analytic", ("fit",)),
    ]


def fold_terms(kind: str, *, factors: int, threads: int, phases: tuple[str, ...]) -> list[Term]:
    """Users found anew, one in each thread; nothing where ``kind`` is another model."""
    if kind != "bpr":
        return []
    pairs = 4 * PAIRS * POSITIVE_ROWS * COMPARED
    rows = 4 * 3 * factors * (POSITIVE_ROWS + COMPARED)
    return [Term("pairs of known and other items", threads * (pairs + rows), "analytic", phases)]
