"""What a loaded model takes, and what ranking all items for blocks of users takes: shared by the commands."""

from __future__ import annotations

from collections.abc import Sequence

from common.memory.footprint import Term

PACKING_BYTES = 4096
"""What one BLAS thread packs, by the inner dimension of its product."""
WARM_FACTORS = 64
"""That dimension in the warm-up, so that the baseline has packed it already."""
THREAD_BYTES = 128 << 10
"""A thread's stack and its part of the heap, beyond what the warm-up's threads left."""
VALUE_BYTES = 320
"""What evaluation keeps of a user: its metrics, twice, and its place among those drawn again."""
USER_BLOCKS = (256, 128, 64, 32, 16, 8)
"""Users ranked at a time: the knob. Beyond 256 nothing gets faster."""


def model_terms(*, users: int, items: int, factors: int, phases: Sequence[str]) -> list[Term]:
    """A loaded ``model.Recommender``: factors, row starts of the history, the Gramian."""
    where = tuple(phases)
    return [
        Term("item factors", 4 * items * factors, "analytic", where),
        Term("history index", 8 * (users + 1), "analytic", where),
        Term("Gramian", 4 * factors * factors, "analytic", where),
    ]


def ranking_terms(
    *, items: int, factors: int, scored: int, longest: int, mean: float, block: int, threads: int, phases: Sequence[str]
) -> list[Term]:
    """``evaluate.evaluate``: a block of scores; in each thread the work on one user."""
    where = tuple(phases)
    block = min(block, scored)  # what is not used of the block is never touched
    return [
        Term("scores", 4 * block * (items + factors), "analytic", where),
        Term("waiting histories", int(block * (12 * mean + 1024)), "analytic", where),
        # One history's rows of the factors, and weighted; the system, solved in a copy.
        Term("fold-in workspace", threads * 4 * factors * (2 * longest + 3 * factors), "analytic", where),
        Term("threads", threads * THREAD_BYTES, "measured", where),
        Term("BLAS packing", threads * PACKING_BYTES * max(0, factors - WARM_FACTORS), "measured", where),
        # The partitioned copy and two comparisons.
        Term("top-k workspace", threads * 6 * items, "analytic", where),
        Term("held-out index", 12 * (scored + 1), "analytic", where),
        Term("counts of items", 24 * items, "analytic", where),
        # A dozen numbers for each user, copied once or twice; users drawn again for the intervals.
        Term("values of users", VALUE_BYTES * scored, "analytic", where),
    ]
