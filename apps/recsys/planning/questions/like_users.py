"""What ``recsys similar --user`` takes, in bytes: histories of all users, block by block, and a cosine for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.recsys.models.likeness.neighbours import BLOCK
from apps.recsys.planning.bpr_terms import fold_terms
from apps.recsys.planning.linear_terms import is_spectral, scores_all
from apps.recsys.planning.ranking_terms import THREAD_BYTES, folding_bytes
from common.errors import UsageError
from common.memory.footprint import Term

PAIR_BYTES = {False: 24, True: 56}
"""Memory of an interaction of a block: its item and value, and copies; where items are compared, two running sums in
float64."""
USER_BYTES, ITEM_BYTES = 12, 32
"""Memory of a user: his cosine, and what finding the largest takes; and of an item where items are compared: its
number of users, its share, and whether it is in common."""


def require_tastes(manifest: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` for a model to which all users are alike."""
    if manifest["kind"] == "popularity":
        raise UsageError("--user: to a popularity model all users are alike; any other model compares them")


def like_user_terms(manifest: Mapping[str, Any], *, threads: int) -> list[Term]:
    """Terms of the phase ``answer``, besides the loaded model and the history of the user who is asked about."""
    users, items, answer = manifest["users"], manifest["items"], ("answer",)
    longest, by_items = manifest.get("longest", manifest["longest_history"]), scores_all(manifest)
    block = min(BLOCK, manifest["interactions"]) + longest
    factors = manifest["factors"]
    each = folding_bytes(factors=factors, longest=longest, solves=not is_spectral(manifest))
    folding = 0 if by_items else threads * each
    kind = "" if by_items else manifest["kind"]
    return [
        Term("histories compared", PAIR_BYTES[by_items] * block, "analytic", answer),
        Term("cosines of users", USER_BYTES * users + (ITEM_BYTES * items if by_items else 0), "analytic", answer),
        Term("folding in users", folding + threads * THREAD_BYTES, "analytic", answer),
        *fold_terms(kind, factors=factors, longest=longest, threads=threads, phases=answer),
    ]
