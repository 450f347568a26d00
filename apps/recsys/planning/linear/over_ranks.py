"""Memory terms of a linear model that several ranks train (``apps.recsys.training.over_ranks``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.recsys.models.linear import ease
from apps.recsys.models.linear.log import block_users
from apps.recsys.models.linear.options import chooses, sample_users
from apps.recsys.models.linear.spectrum import ROWS, vectors
from apps.recsys.models.scan.stored import writing_bytes
from apps.recsys.planning.ials_terms import BLOCKS_SENT
from apps.recsys.planning.linear.training import TrainingSizes, evaluating_terms, ranked_terms
from apps.recsys.planning.linear_terms import ARRAYS, POWERS_BYTES, block_terms, ease_terms, left_behind, scoring_terms
from common.memory.footprint import Term
from common.training.distributed.price import ranks_terms
from common.training.distributed.row_files import BLOCK_BYTES
from common.training.distributed.world import World

COLUMNS = 32
"""Vectors that P is applied to at a time: ``ARRAYS`` arrays of all items."""
DRAWN = 1 << 12
"""Rows of first vectors that are drawn at a time."""
COUNTING_BYTES = 26
"""Bytes of a pair of items that is counted: its cell, twice, a mark, and the number there before and after."""


def over_ranks_terms(
    sizes: TrainingSizes,
    hyper: Mapping[str, Any],
    setting: Mapping[str, Any],
    world: World,
    *,
    threads: int,
    evaluates: bool,
) -> list[Term]:
    """Terms of a training over ranks; parameters as in ``training.training_terms``."""
    form, fit = hyper["form"], ("fit",)
    factors, block = int(setting["factors"]), min(int(setting["user_block"]), sample_users(sizes.items, sizes.users))
    counted = {"users": sizes.users, "items": sizes.items, "interactions": sizes.trained}
    fitted, compared = (
        _ease(sizes, block, world) if form == "ease" else _spectrum(counted, factors, block, threads, world)
    )
    if chooses(hyper, factors):
        scored = sample_users(sizes.items, sizes.users)
        compared += ranked_terms(sizes, scored, sizes.longest, block, threads=threads, phases=fit, scores=False)
    else:
        compared = []
    terms = [
        *block_terms(**counted, longest=sizes.longest, threads=threads, phases=fit),
        *max(fitted, compared, key=lambda some: sum(term.bytes for term in some)),
        *ranks_terms(world, 0, fit),
    ]
    if form == "spectral":
        shared = 4 * factors * world.largest_share(sizes.items) + BLOCKS_SENT * BLOCK_BYTES
        terms.append(Term("spectrum", max(shared, writing_bytes(sizes.items, factors)), "analytic", ("write",)))
    if evaluates:  # on the first rank, which loads the whole model
        terms += evaluating_terms(sizes, hyper, setting, threads=threads)
    return terms


def _spectrum(
    counted: Mapping[str, int], factors: int, block: int, threads: int, world: World
) -> tuple[list[Term], list[Term]]:
    """Terms of the spectrum, as ``linear_terms.spectrum_terms``; and of comparing candidates."""
    items, fit = counted["items"], ("fit",)
    width, own, users = vectors(items, factors), world.largest_share(items), block_users(**counted)
    array, columns = 4 * width * own, min(COLUMNS, width)
    applying = 4 * columns * (ARRAYS * items + users)
    orthonormal = 4 * width * min(own, threads * ROWS) + (5 * 8 + 4 * threads) * width * width
    drawing, left = 4 * width * min(DRAWN, items), left_behind(items=own, factors=factors, phases=fit)
    most = array + max(array + max(applying, orthonormal), drawing)
    hiding = scoring_terms(**counted, block=block, threads=1, phases=fit)
    # Coefficients before and after the sum; scores of the own items, before and after the powers.
    comparing = [
        Term("spectrum", 4 * own * factors, "analytic", fit),
        Term("scores", 4 * block * (2 * own + 3 * factors), "analytic", fit),
        Term("powers of the items' users", POWERS_BYTES * items, "analytic", fit),
    ]
    asked = max(hiding, comparing, key=lambda some: sum(term.bytes for term in some))
    return [Term("spectrum", most, "analytic", fit), left], [*asked, left]


def _ease(sizes: TrainingSizes, block: int, world: World) -> tuple[list[Term], list[Term]]:
    """Terms of EASE's weights, as ``linear_terms.ease_terms``; and with them those of comparing ridges."""
    items, fit = sizes.items, ("fit",)
    _, panels = ease_terms(items=items, phases=fit)
    counting = COUNTING_BYTES * max(ease.PAIRS, min(sizes.longest, items))
    weights = [
        Term("weights of items by items", 4 * ease.most_cells(items, world.size) + 8 * items, "analytic", fit),
    ]
    eliminated = Term(panels.name, max(panels.bytes, counting), "analytic", fit)
    # What was had, its products with the weights, and those with one panel.
    scores = Term("scores", ARRAYS * 4 * block * items, "analytic", fit)
    return [*weights, eliminated], [*weights, max(eliminated, scores, key=lambda term: term.bytes)]
