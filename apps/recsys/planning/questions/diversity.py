"""What ``--diversity`` takes, in bytes: a shortlist for each list, and the cosines of its items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apps.recsys.models.likeness.diversity import shortlist
from apps.recsys.models.linear.log import BLOCK_INTERACTIONS
from apps.recsys.planning.baselines import uses_interactions
from apps.recsys.planning.embedding_terms import columns
from apps.recsys.planning.questions.where import require_attributes
from common.errors import UsageError
from common.memory.footprint import Term

PAIR_BYTES, ROW_BYTES = {False: 6, True: 20}, 160
"""Memory of two items of a shortlist, by whether their cosines come as a sparse matrix first, and of an item of it."""
READER_BYTES = 24
"""Memory of a user of an item while cosines come from the interactions."""


def require_choice(where: str | None, diversity: float, manifest: Mapping[str, Any]) -> None:
    """Check what chooses items against a model, before anything is planned.

    Raises
    ------
    BadInput, UsageError
        As ``require_attributes``; ``popularity`` has nothing that tells how far two items are alike.
    """
    require_attributes(where, manifest)
    if diversity and manifest["kind"] == "popularity":
        raise UsageError("--diversity: popularity does not know which items are alike; any other model does")


def diversity_terms(
    k: int, diversity: float, manifest: Mapping[str, Any], phases: Sequence[str], *, threads: int = 1
) -> list[Term]:
    """Terms of choosing lists of ``k`` items by maximal marginal relevance in each thread; none without it."""
    if not diversity:
        return []
    items = manifest["items"]
    count = min(shortlist(k, diversity), items)
    if by_users := uses_interactions(manifest):
        block = min(BLOCK_INTERACTIONS, manifest["interactions"]) + manifest["longest_history"]
        vectors = READER_BYTES * min(block, count * manifest["users"]) + 8 * items
    else:
        vectors = 2 * 4 * count * columns(manifest)
    each = PAIR_BYTES[by_users] * count * count + ROW_BYTES * count + vectors
    return [Term("cosines of the shortlist", threads * each, "analytic", tuple(phases))]
