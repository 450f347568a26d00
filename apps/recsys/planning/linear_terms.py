"""Memory terms of a linear model: its blocks of interactions, its spectrum, and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.recsys.models.linear import ease, readers
from apps.recsys.models.linear.log import BLOCK_INTERACTIONS, block_users
from apps.recsys.models.linear.spectrum import ROWS, vectors
from apps.recsys.models.manifest import spectrum_bits
from apps.recsys.planning.baselines import uses_interactions
from apps.recsys.planning.ranking_terms import PACKING_BYTES, WARM_FACTORS
from common.compression import codes
from common.memory.footprint import Term

ARRAYS = 3
"""Arrays of items by users while histories are scored: questions, answers, and what a block or the spectrum adds."""

LEFT_BYTES = 10 << 20
"""Memory that BLAS and the heap keep after the spectrum was computed (measured 9 MiB while candidates
are compared and 12 while the split is evaluated, on Last.fm with 256 eigenvalues)."""


PLACED_BYTES = 56
"""Bytes of an interaction of a block that is put in the order of its items: both orders, its place, and copies."""
SHARED_BYTES, HISTORIES_BYTES, SPLIT_BYTES = 52, 12, 12
"""Bytes of a user who is looked at because of a shared item (measured 51): as it is read, sorted, its place and its
weight; of an interaction of those who are kept: as it is read, joined, with a one; and of its copy for explanations."""


def block_terms(
    *, users: int, items: int, interactions: int, longest: int, threads: int, phases: tuple[str, ...]
) -> list[Term]:
    """Terms of reading the interactions by blocks: their items in each thread, a one for each of them, row starts."""
    block = min(BLOCK_INTERACTIONS, interactions) + longest
    starts = 4 * 4 * min(block_users(items), users) * threads
    return [
        Term("block of interactions", 4 * block * (1 + threads) + starts, "analytic", phases),
        Term("history index", 8 * (users + 1), "analytic", phases),
        Term("counts of the items' users", 12 * items, "analytic", phases),
    ]


def spectrum_terms(*, users: int, items: int, factors: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of ``spectrum``: two blocks of vectors, what is added to one, the users' shares, Gramians in float64."""
    if not factors:
        return []
    width = vectors(items, factors)
    arrays = 4 * width * (3 * items + min(users, block_users(items)) + 2 * ROWS)
    return [Term("spectrum", arrays + 5 * 8 * width * width, "analytic", phases)]


def model_terms(*, items: int, factors: int, bits: int = 32, phases: tuple[str, ...]) -> list[Term]:
    """Terms of a spectrum that is loaded."""
    if not factors:
        return []
    row = 4 * factors if bits == 32 else codes.row_bytes(factors, bits)
    return [Term("spectrum", row * items + 4 * factors, "analytic", phases)]


def decoding_terms(*, factors: int, bits: int, threads: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of codes while they are decoded: a block of rows in each thread, its codes, and what BLAS packs of it."""
    if not factors or bits == 32:
        return []
    each = codes.BLOCK_ROWS * (4 * (factors + 8) + 9 * codes.row_bytes(factors, bits))
    packing = PACKING_BYTES * max(0, factors - WARM_FACTORS)
    return [Term("decoded rows", threads * (each + packing), "analytic", phases)]


def scoring_terms(*, users: int, items: int, block: int, threads: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of scoring all items for ``block`` users in all, shared by the threads."""
    columns = -(-block // threads) * threads
    return [Term("scores", 4 * columns * (ARRAYS * items + min(users, block_users(items))), "analytic", phases)]


def comparing_terms(*, users: int, items: int, block: int, threads: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of comparing candidates: their scores, a mask of the large ones, and what the spectrum left behind."""
    columns = -(-block // threads) * threads
    return [
        *scoring_terms(users=users, items=items, block=block, threads=threads, phases=phases),
        Term("mask of large scores", columns * items, "analytic", phases),
        Term("left behind by the spectrum", LEFT_BYTES, "measured", phases),
    ]


def coded_terms(manifest: Mapping[str, Any], *, phases: tuple[str, ...]) -> list[Term]:
    """Terms of a model's spectrum as codes, besides the decoded one."""
    sizes = {"factors": manifest["factors"], "bits": spectrum_bits(manifest), "phases": phases}
    return decoding_terms(**sizes, threads=1) + (
        model_terms(items=manifest["items"], **sizes) if sizes["bits"] < 32 else []
    )


def readers_terms(*, items: int, interactions: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of writing the users of each item: a chunk, a block in both orders with its places, and starts."""
    block, chunk = min(BLOCK_INTERACTIONS, interactions), min(readers.CHUNK, interactions)
    # Of a block about as large a part as the chunk is of all, here twice that.
    arrays = 4 * chunk + int(PLACED_BYTES * block * min(1.0, 2 * chunk / interactions)) + 24 * items
    return [Term("users of the items", arrays, "analytic", phases)]


def one_user_terms(manifest: Mapping[str, Any], *, rows: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of a filter that scores one user by readers, and explains ``rows`` scores at a time."""
    items, interactions = manifest["items"], manifest["interactions"]
    looked_at = SHARED_BYTES * min(readers.READ, interactions) + 4 * manifest["users"]
    each = HISTORIES_BYTES + SPLIT_BYTES * (rows > 1)
    histories = each * min(readers.PRODUCTS + manifest.get("longest", 0), interactions)
    return [
        # Starts of the users, degrees, weights of both sides, and what orders the rest.
        Term("users of the items", 8 * (items + 1) + 12 * items, "analytic", phases),
        Term("users with the same items", looked_at + histories, "analytic", phases),
        Term("scores", 4 * items * (1 + 2 * (manifest["factors"] > 0)), "analytic", phases),
        Term("explained scores", 24 * rows * manifest.get("longest", 0), "analytic", phases),
    ]


def ease_terms(*, items: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of making EASE's weights: items squared, and three panels of rows."""
    panels = 3 * 4 * ease.PANEL * items + 32 * ease.PANEL**2
    return [
        Term("weights of items by items", 4 * items * items, "analytic", phases),
        Term("rows being eliminated", panels, "analytic", phases),
    ]


def readers_file(manifest: Mapping[str, Any]) -> bool:
    """True for a filter that scores single users by the users of their items."""
    return f"{readers.NAME}.users.npy" in manifest.get("files", {})


def scores_all(manifest: Mapping[str, Any]) -> bool:
    """True for a linear model that scores all items at a time: a filter, a spectrum that is codes, or EASE."""
    is_ease = manifest["kind"] == "linear" and manifest["hyper"]["form"] == "ease"
    return uses_interactions(manifest) or spectrum_bits(manifest) < 32 or is_ease


def scorer_terms(
    manifest: Mapping[str, Any],
    *,
    block: int,
    threads: int,
    phases: tuple[str, ...],
    scoring: tuple[str, ...] = (),
    one: bool = False,
) -> list[Term]:
    """Terms of a loaded model (``scores_all``) that scores for ``block`` users at a time, in the phases ``scoring``.

    With ``one`` it scores for one user, and explains ``block`` scores at a time.
    """
    sizes = {"users": manifest["users"], "items": manifest["items"]}
    factors, bits, scoring = manifest["factors"], spectrum_bits(manifest), scoring or phases
    spectrum = [
        *model_terms(items=manifest["items"], factors=factors, bits=bits, phases=phases),
        *decoding_terms(factors=factors, bits=bits, threads=threads, phases=scoring),
    ]
    if not uses_interactions(manifest):
        columns = -(-block // threads) * threads
        return [
            *spectrum,  # EASE has none, and a row of weights in each thread
            Term("row of weights", 8 * threads * manifest["items"], "analytic", scoring),
            Term("weights of the items", 12 * manifest["items"], "analytic", phases),
            Term("scores", 4 * columns * (manifest["items"] + factors), "analytic", scoring),
        ]
    longest = manifest.get("longest", manifest["longest_history"])
    if readers_file(manifest) and one:
        blocks = 4 * min(BLOCK_INTERACTIONS, manifest["interactions"]) + 8 * (manifest["users"] + 1)
        return [
            Term("block of interactions", blocks, "analytic", phases),
            Term("counts of the items' users", 12 * manifest["items"], "analytic", phases),
            *spectrum,
            *one_user_terms(manifest, rows=block, phases=scoring),
        ]
    return [
        *block_terms(**sizes, interactions=manifest["interactions"], longest=longest, threads=threads, phases=phases),
        *spectrum,
        *scoring_terms(**sizes, block=block, threads=threads, phases=scoring),
    ]
