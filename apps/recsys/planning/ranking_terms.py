"""Memory terms of a loaded model, and of ranking all items for blocks of users."""

from __future__ import annotations

from collections.abc import Sequence

from common.memory.footprint import Term

PACKING_BYTES = 4096
"""Bytes that a BLAS thread packs, per unit of the inner dimension of its product."""
WARM_FACTORS = 64
"""Inner dimension in the warm-up: what is packed for it is part of the baseline."""
THREAD_BYTES = 128 << 10
"""Stack and heap of a thread, besides what the threads of the warm-up left behind."""
VALUE_BYTES = 320
"""Bytes per scored user: its metrics, twice, and its counts in the bootstrap samples."""
USER_BLOCKS = (256, 128, 64, 32, 16, 8)
"""Values of the knob ``user_block``, the users ranked at a time. Larger blocks than 256 are not faster."""


def folding_bytes(*, factors: int, longest: int, solves: bool = True) -> int:
    """Memory of a user's vector while it is made: factors of the history's items, and weighted; the system, which is
    solved in a copy. Where it is a sum (not ``solves``), the factors alone."""
    return 4 * factors * (2 * longest + 3 * factors) if solves else 4 * factors * (longest + 1)


def model_terms(*, users: int, items: int, factors: int, phases: Sequence[str], solves: bool = True) -> list[Term]:
    """Terms of a loaded ``Recommender``.

    Parameters
    ----------
    users, items
        Their numbers.
    factors
        Numbers per item (``embedding_terms.columns``).
    phases
        Phases in which it is loaded.
    solves
        False where users' vectors are sums, so that no Gramian is needed.
    """
    during = tuple(phases)
    return [
        Term("item factors", 4 * items * factors, "analytic", during),
        Term("history index", 8 * (users + 1), "analytic", during),
        Term("Gramian", 4 * factors * factors * solves, "analytic", during),
    ]


def ranking_terms(
    *,
    items: int,
    factors: int,
    scored: int,
    longest: int,
    mean: float,
    block: int,
    threads: int,
    phases: Sequence[str],
    scores: bool = True,
    solves: bool = True,
) -> list[Term]:
    """Terms of ``full_ranking.evaluate``.

    Parameters
    ----------
    items
        Number of items.
    factors
        Numbers per vector.
    scored
        Number of users to rank for.
    longest, mean
        Largest and mean number of items in a history.
    block
        Users ranked at a time.
    threads
        Threads that rank.
    phases
        Phases in which it happens.
    scores
        False to leave out the array of scores, where the model has terms of its own for it.
    solves
        False where users' vectors are sums.
    """
    during = tuple(phases)
    block = min(block, scored)  # unused rows of the block stay untouched pages
    return [
        *([Term("scores", 4 * block * (items + factors), "analytic", during)] if scores else []),
        Term("waiting histories", int(block * (12 * mean + 1024)), "analytic", during),
        Term(
            "fold-in workspace",
            threads * folding_bytes(factors=factors, longest=longest, solves=solves),
            "analytic",
            during,
        ),
        Term("threads", threads * THREAD_BYTES, "measured", during),
        Term("BLAS packing", threads * PACKING_BYTES * max(0, factors - WARM_FACTORS), "measured", during),
        # A partitioned copy and two comparisons.
        Term("top-k workspace", threads * 6 * items, "analytic", during),
        Term("held-out index", 12 * (scored + 1), "analytic", during),
        Term("counts of items", 36 * items, "analytic", during),
        # A dozen numbers per user, copied once or twice; counts of users in a bootstrap sample.
        Term("values of users", VALUE_BYTES * scored, "analytic", during),
    ]
