"""Memory terms of ``ials``: the factors, and the interactions in memory or a block of them at a time."""

from __future__ import annotations

from dataclasses import dataclass

from apps.recsys.data.external_sort import MOST_BUCKETS
from apps.recsys.models.als.als_matrices import MEMORY_BLOCK, SORTED_SHARE
from apps.recsys.models.als.ials_exact import workspace_bytes
from apps.recsys.models.scan.stored import writing_bytes
from common.memory.footprint import Term
from common.training.distributed.row_files import BLOCK_BYTES
from common.training.distributed.world import World

BLOCKS = (1 << 24, 1 << 22, 1 << 20, 1 << 18)
"""Values of the knob ``fit_block``: interactions that are read from disk and solved at a time. Further values: all
interactions, which then stay in memory."""
SOLVER_BYTES = 7 << 19
"""Memory of ``implicit``'s solver and of BLAS below it (measured 2.7 to 3.3 MiB, for 64 to 256 factors)."""
SOLVED_BYTES = 12
"""Bytes per interaction of a block: item, confidence, and the solver's copy of the confidence."""
WHILE_SOLVING = ("exact solver", "solver's copy of confidences")
"""Terms of what is freed before a trial is scored."""
INDEX_BYTES = 64
"""Bytes per row that ``ials_exact`` solves: length, weight, ridge, and position in the order by length."""
PAIR_BYTES = 48
"""Bytes per pair while its bucket is sorted: two copies of the record, the key or the order, the columns."""
TOUCHED_BYTES = 5
"""Bytes per row of a side for what a block of interactions touches: a mark, and the new position."""
BLOCKS_SENT = 3
"""Blocks of factors at the same time: one that is sent, one that is received, and the copy of rows that are sent."""
GRAMIAN_SPEED = 2.5e10
"""Multiply-adds per second of one BLAS thread."""
SOLVING_SPEED = 2e9
"""Multiply-adds per second of a solver's thread. Both speeds only compare settings with each other."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the matrix that is factorised.

    Attributes
    ----------
    users, items, interactions
        Their numbers.
    longest
        Largest number of interactions of one user.
    factors
        Numbers per row.
    exact
        True if ``ials_exact`` solves the rows instead of ``implicit``.
    threads
        Threads that solve.
    """

    users: int
    items: int
    interactions: int
    longest: int
    factors: int
    exact: bool = False
    threads: int = 1

    @property
    def longest_row(self) -> int:
        """Largest number of interactions of a row of either side: an item may have all users."""
        return max(self.longest, self.users)


def blocks(sizes: Sizes) -> list[int]:
    """Values of the knob ``fit_block``, the fastest first."""
    return [sizes.interactions, *(size for size in BLOCKS if size < sizes.interactions)]


def terms(sizes: Sizes, fit_block: int) -> list[Term]:
    """Terms of the phases ``arrange`` (``als_matrices``) and ``fit`` (``ials.fit``), without the items' factors."""
    factors = [
        Term("user factors", 4 * sizes.users * sizes.factors, "analytic", ("fit",)),
        Term("solver", SOLVER_BYTES, "measured", ("fit",)),
    ]
    if sizes.exact:
        factors.append(_exact(sizes, max(sizes.users, sizes.items)))
    return factors + (_in_memory(sizes) if fit_block >= sizes.interactions else _on_disk(sizes, fit_block))


def _exact(sizes: Sizes, rows: int) -> Term:
    """The term of ``ials_exact``, which is given ``rows`` rows of the other side."""
    work = workspace_bytes(
        rows=rows, interactions=sizes.interactions, factors=sizes.factors, threads=sizes.threads
    )  # fmt: skip
    indices = INDEX_BYTES * max(sizes.users, sizes.items)
    return Term("exact solver", work + indices, "analytic", ("fit",))


def _in_memory(sizes: Sizes) -> list[Term]:
    both = ("arrange", "fit")
    copied = 0 if sizes.exact else min(sizes.interactions, MEMORY_BLOCK + sizes.longest_row)
    return [
        Term("interactions by user", 8 * sizes.interactions + 4 * sizes.users, "analytic", both),
        Term("interactions by item", 8 * sizes.interactions + 4 * sizes.items, "analytic", both),
        Term("solver's copy of confidences", 4 * copied, "analytic", ("fit",)),
    ]


def _on_disk(sizes: Sizes, fit_block: int) -> list[Term]:
    bucket = max(-(-fit_block // SORTED_SHARE), -(-sizes.interactions // MOST_BUCKETS)) + sizes.longest_row
    return [
        Term("row starts", 8 * (sizes.users + sizes.items + 2), "analytic", ("arrange", "fit")),
        Term("bucket of pairs", PAIR_BYTES * bucket, "measured", ("arrange",)),
        Term("block of interactions", SOLVED_BYTES * (fit_block + sizes.longest_row), "analytic", ("fit",)),
    ]


def shared_terms(sizes: Sizes, fit_block: int, world: World) -> list[Term]:
    """Terms of ``shared_factors``: this rank's factors, and those that a block of interactions needs.

    Parameters
    ----------
    sizes
        Sizes of the matrix.
    fit_block
        Interactions that are solved at a time.
    world
        The ranks.
    """
    fit, most = ("fit",), fit_block + sizes.longest_row
    rows = max(min(most, sizes.users), min(most, sizes.items)) + sizes.factors
    owned = sum(map(world.largest_share, (sizes.users, sizes.items)))
    terms = [
        Term("factors", 4 * owned * sizes.factors, "analytic", ("fit", "write")),
        Term("factors of a block", 4 * rows * sizes.factors, "analytic", fit),
        Term("rows touched", TOUCHED_BYTES * max(sizes.users, sizes.items) + 12 * rows, "analytic", fit),
        Term("renumbered interactions", 4 * min(most, sizes.interactions), "analytic", fit),
        Term("rows on their way", BLOCKS_SENT * BLOCK_BYTES, "analytic", ("fit", "write")),
        Term("solver", SOLVER_BYTES, "measured", fit),
        Term("codes to write", writing_bytes(sizes.items, sizes.factors), "analytic", ("write",)),
    ]
    if sizes.exact:
        terms.append(_exact(sizes, rows))
    return terms + _on_disk(sizes, min(fit_block, sizes.interactions))


def seconds(sizes: Sizes, fit_block: int, *, iterations: int) -> float:
    """Predicted time of the fit: three steps of conjugate gradients per row; a Gramian per block that is read."""
    rows, square = sizes.users + sizes.items, sizes.factors**2
    solving = 4 * (2 * sizes.interactions * 2 * sizes.factors + rows * square)
    blocks = 0.0 if fit_block >= sizes.interactions else 1 + sizes.interactions / fit_block
    return iterations * (solving / SOLVING_SPEED + blocks * rows * square / GRAMIAN_SPEED)
