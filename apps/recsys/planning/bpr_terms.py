"""Memory terms of ``bpr``: all interactions, the factors of both sides, and the fold-in of users."""

from __future__ import annotations

from apps.recsys.models.bpr import COMPARED
from apps.recsys.models.embedding.user_encoders import POSITIVE_ROWS
from common.memory.footprint import Term

PAIRS = 5
"""Arrays of positives by negatives that exist at the same time in ``user_encoders.fold_in_newton``."""


def terms(*, users: int, interactions: int, factors: int) -> list[Term]:
    """Terms of the phases ``arrange`` (the matrix) and ``fit`` (``bpr.fit``), without the items' factors."""
    return [
        Term("interactions", 8 * interactions + 8 * users, "analytic", ("arrange", "fit")),
        Term("user factors", 4 * users * factors, "analytic", ("fit",)),
    ]


def fold_terms(kind: str, *, factors: int, longest: int, threads: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of folding in a user with ``longest`` items per thread; none if ``kind`` is another model."""
    if kind != "bpr":
        return []
    positives = min(POSITIVE_ROWS, longest)
    pairs = 4 * PAIRS * positives * COMPARED
    rows = 4 * 3 * factors * (positives + COMPARED)
    return [Term("pairs of known and other items", threads * (pairs + rows), "analytic", phases)]
