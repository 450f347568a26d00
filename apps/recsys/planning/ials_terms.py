"""What fitting ``ials`` holds: the factors, and the interactions in memory or a block of them at a time."""

from __future__ import annotations

from dataclasses import dataclass

from apps.recsys.data.external_sort import MOST_BUCKETS
from apps.recsys.models.als.als_matrices import MEMORY_BLOCK, SORTED_SHARE
from apps.recsys.models.als.ials_exact import workspace_bytes
from common.memory.footprint import Term

BLOCKS = (1 << 24, 1 << 22, 1 << 20, 1 << 18)
"""Interactions solved at a time where they are read from disk: the knob. All of them: they stay in memory."""
SOLVER_BYTES = 7 << 19
"""What ``implicit``'s solver and BLAS below it take (measured 2.7 to 3.3 MiB, for 64 to 256 factors)."""
SOLVED_BYTES = 12
"""An interaction of a block: item, confidence, and the solver's copy of the confidence."""
INDEX_BYTES = 64
"""A row of the side that is solved by ``exact``: its length, weight and ridge, its place in the order by length."""
PAIR_BYTES = 48
"""A pair while its bucket is sorted: two copies of the record, the key or the order, the dealt columns."""
GRAMIAN_SPEED = 2.5e10
"""Multiplications with additions a second of one BLAS thread."""
SOLVING_SPEED = 2e9
"""The same of a solver's thread; both only weigh settings against each other."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the matrix that is factorised."""

    users: int
    items: int
    interactions: int
    longest: int
    """The most interactions of one user."""
    factors: int
    exact: bool = False
    """Rows are solved by ``exact.solve`` instead of ``implicit``."""
    threads: int = 1

    @property
    def longest_row(self) -> int:
        """The most interactions of a row of either side: an item may have all users."""
        return max(self.longest, self.users)


def blocks(sizes: Sizes) -> list[int]:
    """Values of the knob ``fit_block``, the fastest first."""
    return [sizes.interactions, *(size for size in BLOCKS if size < sizes.interactions)]


def terms(sizes: Sizes, fit_block: int) -> list[Term]:
    """The phases ``arrange`` (``sides``) and ``fit`` (``ials.fit``); the items' factors are not among them."""
    factors = [
        Term("user factors", 4 * sizes.users * sizes.factors, "analytic", ("fit",)),
        Term("solver", SOLVER_BYTES, "measured", ("fit",)),
    ]
    if sizes.exact:
        work = workspace_bytes(rows=max(sizes.users, sizes.items), factors=sizes.factors, threads=sizes.threads)
        indices = INDEX_BYTES * max(sizes.users, sizes.items)
        factors.append(Term("exact solver", work + indices, "analytic", ("fit",)))
    return factors + (_held(sizes) if fit_block >= sizes.interactions else _stored(sizes, fit_block))


def _held(sizes: Sizes) -> list[Term]:
    both = ("arrange", "fit")
    copied = min(sizes.interactions, MEMORY_BLOCK + sizes.longest_row)
    return [
        Term("interactions by user", 8 * sizes.interactions + 4 * sizes.users, "analytic", both),
        Term("interactions by item", 8 * sizes.interactions + 4 * sizes.items, "analytic", both),
        Term("solver's copy of confidences", 4 * copied, "analytic", ("fit",)),
    ]


def _stored(sizes: Sizes, fit_block: int) -> list[Term]:
    dealt = max(-(-fit_block // SORTED_SHARE), -(-sizes.interactions // MOST_BUCKETS)) + sizes.longest_row
    return [
        Term("row starts", 8 * (sizes.users + sizes.items + 2), "analytic", ("arrange", "fit")),
        Term("bucket of pairs", PAIR_BYTES * dealt, "measured", ("arrange",)),
        Term("block of interactions", SOLVED_BYTES * (fit_block + sizes.longest_row), "analytic", ("fit",)),
    ]


def seconds(sizes: Sizes, fit_block: int, *, iterations: int) -> float:
    """Three steps of conjugate gradients a row; from disk, each block needs a Gramian of the other side of its own."""
    rows, square = sizes.users + sizes.items, sizes.factors**2
    solving = 4 * (2 * sizes.interactions * 2 * sizes.factors + rows * square)
    blocks = 0.0 if fit_block >= sizes.interactions else 1 + sizes.interactions / fit_block
    return iterations * (solving / SOLVING_SPEED + blocks * rows * square / GRAMIAN_SPEED)
