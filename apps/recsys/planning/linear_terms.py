"""Memory terms of a linear model: its blocks of interactions, its spectrum, and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.recsys.models.coded.stored import is_coded
from apps.recsys.models.linear import ease, readers
from apps.recsys.models.linear.log import BLOCK_INTERACTIONS, block_users
from apps.recsys.models.linear.spectrum import ROWS, vectors
from apps.recsys.models.manifest import spectrum_bits
from apps.recsys.models.weights import DECODED_ROWS
from apps.recsys.planning.baselines import uses_interactions
from apps.recsys.planning.compressing.terms import scorer_terms as coded_terms_of
from apps.recsys.planning.compressing.terms import vector_terms
from apps.recsys.planning.ranking_terms import PACKING_BYTES, USER_BLOCKS, WARM_FACTORS
from common.compression import codes
from common.memory.footprint import Term

ARRAYS = 3
"""Arrays of items by users while histories are scored: questions, answers, and what a block or the spectrum adds."""
SPECTRAL_ARRAYS = 2
"""The same where candidates are spectral: scores, and as much again that the heap keeps of what chose the hidden items
(measured 1.4 in all, on Gowalla)."""
POWERS_BYTES = 24
"""Bytes of an item's number of users to the powers of the candidates that are compared at a time."""
LEAST_LEFT_BYTES, MOST_LEFT_BYTES = 2 << 20, 14 << 20
"""Memory that BLAS and the heap keep after the spectrum was computed: this and an array of it, at most that (measured
1 MiB with 40 items, 3 with 1,000 and 6 with 4,000 and 512 eigenvalues; on Last.fm with 512 eigenvalues 12 while
candidates are compared, with 256 as many while the split is evaluated)."""
PLACED_BYTES = 56
"""Bytes of an interaction of a block that is put in the order of its items: both orders, its place, and copies."""
SHARED_BYTES, HISTORIES_BYTES, SPLIT_BYTES = 52, 12, 12
"""Bytes of a user who is looked at because of a shared item (measured 51): as it is read, sorted, its place and its
weight; of an interaction of those who are kept: as it is read, joined, with a one; and of its copy for explanations."""


def block_terms(
    *, users: int, items: int, interactions: int, longest: int, threads: int, phases: tuple[str, ...]
) -> list[Term]:
    """Terms of reading the interactions by blocks: their items in each of the ``threads``, a one for each of them, row
    starts; 0 threads: single users are asked."""
    block = min(BLOCK_INTERACTIONS, interactions) + longest
    starts = 4 * 4 * block_users(items, users, interactions) * threads
    return [
        Term("block of interactions", 4 * block * (1 + threads) + starts, "analytic", phases),
        Term("history index", 8 * (users + 1), "analytic", phases),
        Term("counts of the items' users", (12 if threads else 8) * items, "analytic", phases),
    ]


def spectrum_terms(
    *, users: int, items: int, interactions: int, factors: int, threads: int, phases: tuple[str, ...]
) -> list[Term]:
    """Terms of ``spectrum``: its vectors, before and after P, and what applies P or makes them orthonormal.

    P is applied with the users' shares and a product of a block; to make vectors orthonormal takes some of their rows,
    and Gramians in float64.
    """
    if not factors:
        return []
    width = vectors(items, factors)
    array = 4 * width * items
    applying = array + 4 * width * block_users(items, users, interactions)
    orthonormal = 4 * width * min(items, threads * ROWS) + (5 * 8 + 4 * threads) * width * width
    return [
        Term("spectrum", 2 * array + max(applying, orthonormal), "analytic", phases),
        left_behind(items=items, factors=factors, phases=phases),
    ]


def left_behind(*, items: int, factors: int, phases: tuple[str, ...]) -> Term:
    """Term of what BLAS and the heap keep once there was a spectrum."""
    array = 4 * vectors(items, factors) * items if factors else 0
    return Term("left behind by the spectrum", min(MOST_LEFT_BYTES, LEAST_LEFT_BYTES + array), "measured", phases)


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


def scoring_terms(
    *, users: int, items: int, interactions: int, block: int, threads: int, phases: tuple[str, ...]
) -> list[Term]:
    """Terms of scoring all items for ``block`` users in all, shared by the threads."""
    columns = -(-block // threads) * threads
    return [
        Term("scores", 4 * columns * (ARRAYS * items + block_users(items, users, interactions)), "analytic", phases)
    ]


def comparing_terms(
    *,
    users: int,
    items: int,
    interactions: int,
    block: int,
    threads: int,
    filters: bool,
    phases: tuple[str, ...],
) -> list[Term]:
    """Terms of comparing candidates: their scores and a mask of the large ones. Without ``filters`` the interactions
    add nothing to the scores."""
    columns = -(-block // threads) * threads
    sizes = {"users": users, "items": items, "interactions": interactions, "block": block, "threads": threads}
    scores = [Term("scores", 4 * columns * SPECTRAL_ARRAYS * items, "analytic", phases)]
    return [
        *(scoring_terms(**sizes, phases=phases) if filters else scores),
        Term("mask of large scores", columns * items, "analytic", phases),
        Term("powers of the items' users", POWERS_BYTES * items, "analytic", phases),
    ]


def readers_terms(*, items: int, interactions: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of writing the users of each item: a chunk, a block in both orders with its places, and starts."""
    block, chunk = min(BLOCK_INTERACTIONS, interactions), min(readers.CHUNK, interactions)
    # Of a block about as large a part as the chunk is of all, here twice that.
    arrays = 4 * chunk + int(PLACED_BYTES * block * min(1.0, 2 * chunk / interactions)) + 24 * items
    return [Term("users of the items", arrays, "analytic", phases)]


def reader_scoring_terms(
    *,
    users: int,
    items: int,
    interactions: int,
    longest: int,
    block: int,
    threads: int,
    phases: tuple[str, ...],
    spectral: bool = False,
    explained: bool = False,
) -> list[Term]:
    """Terms of a filter that scores ``block`` histories one by one, by the users of their items."""
    looked_at = SHARED_BYTES * min(readers.READ, interactions) + 4 * min(users, interactions)
    each = HISTORIES_BYTES + SPLIT_BYTES * explained
    histories = each * min(readers.PRODUCTS + longest, interactions)
    columns = -(-block // threads) * threads
    return [
        # Starts of the users, weights of both sides, and what orders the rest.
        Term("users of the items", 8 * (items + 1) + 12 * items, "analytic", phases),
        Term("users with the same items", threads * (looked_at + histories), "analytic", phases),
        Term("scores", 4 * items * (threads + columns * (1 + 2 * spectral)), "analytic", phases),
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


def user_blocks(*manifests: Mapping[str, Any]) -> tuple[int, ...]:
    """Numbers of users that are ranked at a time: the smallest where each is scored by himself anyway."""
    return USER_BLOCKS[-1:] if all(map(readers_file, manifests)) else USER_BLOCKS


def scores_all(manifest: Mapping[str, Any]) -> bool:
    """True for a model that scores all items at a time: a filter, EASE, or vectors that are codes."""
    is_ease = manifest["kind"] == "linear" and manifest["hyper"]["form"] == "ease"
    return uses_interactions(manifest) or spectrum_bits(manifest) < 32 or is_ease or is_coded(manifest)


def is_spectral(manifest: Mapping[str, Any]) -> bool:
    """True for a spectrum alone in float32, which scores by item vectors."""
    if is_coded(manifest) or manifest["kind"] != "linear" or manifest["hyper"]["form"] != "spectral":
        return False
    return spectrum_bits(manifest) == 32


def counts_terms(manifest: Mapping[str, Any], *, scans: bool, phases: tuple[str, ...]) -> list[Term]:
    """Terms of the items' numbers of users, and of their powers and a check of some rows while all vectors are made."""
    items = manifest["items"]
    loading = 0 if scans else 4 * items + min(items, DECODED_ROWS) * manifest["factors"]
    return [Term("users of the items", 4 * items + loading, "analytic", phases)]


def scorer_terms(
    manifest: Mapping[str, Any],
    *,
    block: int,
    threads: int,
    phases: tuple[str, ...],
    scoring: tuple[str, ...] = (),
    explains: bool = False,
    by_readers: bool = True,
) -> list[Term]:
    """Terms of a loaded model (``scores_all``) that scores for ``block`` users at a time, in the phases ``scoring``.

    With ``explains`` it scores for one user, and explains ``block`` scores at a time. A large filter scores
    ``by_readers``, unless interactions are added to it (``FilterScorer.add``).
    """
    sizes = {name: manifest[name] for name in ("users", "items", "interactions")}
    factors, bits, scoring = manifest["factors"], spectrum_bits(manifest), scoring or phases
    if is_coded(manifest) and not uses_interactions(manifest):
        return coded_terms_of(manifest, block=block, threads=threads, phases=phases, scoring=scoring)
    spectrum = [
        *model_terms(items=manifest["items"], factors=factors, bits=bits, phases=phases),
        *decoding_terms(factors=factors, bits=bits, threads=threads, phases=scoring),
    ]
    if is_coded(manifest):
        spectrum = vector_terms(manifest, threads=threads, phases=phases)
    if not uses_interactions(manifest):
        columns = -(-block // threads) * threads
        return [
            *spectrum,  # EASE has none, and a row of weights in each thread
            Term("row of weights", 8 * threads * manifest["items"], "analytic", scoring),
            Term("weights of the items", 12 * manifest["items"], "analytic", phases),
            Term("scores", 4 * columns * (manifest["items"] + factors), "analytic", scoring),
        ]
    longest = manifest.get("longest", manifest["longest_history"])
    ranking = scoring_terms(**sizes, block=block, threads=threads, phases=scoring)
    passes = not (by_readers and readers_file(manifest))
    if not passes:
        each = {"block": 1 if explains else block, "spectral": factors > 0, "explained": explains}
        ranking = reader_scoring_terms(**sizes, longest=longest, **each, threads=threads, phases=scoring)
    return [
        *block_terms(**sizes, longest=longest, threads=threads if passes else 0, phases=phases),
        *spectrum,
        *ranking,
    ]
