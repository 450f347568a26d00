"""Memory terms of a loaded model whose item vectors are codes (``recsys compress``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.recsys.models.coded.stored import is_books
from apps.recsys.models.embedding.user_encoders import COMPARED
from apps.recsys.planning.compressing.request import LAYERS
from apps.recsys.planning.ranking_terms import PACKING_BYTES, WARM_FACTORS, folding_bytes
from common.compression.codes import BLOCK_ROWS
from common.compression.row_codes import DECODED_ROWS, LISTED, RANKED
from common.compression.row_levels import MOST_BITS
from common.memory.footprint import Term

MOST_CLASSES = 12
"""Classes of rows that are made (``training.compressing.vectors``)."""
LISTED_BYTES = 9 * LISTED
"""Rows of a class among ``LISTED`` ones, and their classes."""
PRIOR_COLUMNS = 9
"""Columns of a prior and of sampling items by it, as in ``embedding_terms``."""


def decoding_bytes(*, factors: int, rows: int) -> int:
    """Memory of a block of so many rows in float32 and squared, and of unpacking some of them: bits as a byte each,
    their levels' numbers twice, and levels. Rows of one class may have all bits."""
    return 8 * factors * rows + min(DECODED_ROWS, rows) * ((MOST_BITS + 1) * factors + 6 * factors)


def decoded_rows(manifest: Mapping[str, Any]) -> int:
    """Rows that are decoded at a time: of a linear model as many as of its own codes."""
    return min(int(manifest["items"]), BLOCK_ROWS if manifest["kind"] == "linear" else DECODED_ROWS)


def stored_bytes(manifest: Mapping[str, Any]) -> int:
    """Bytes of the codes in memory, with what belongs to columns."""
    codes = manifest["codes"]
    if is_books(manifest):  # their bytes have the entries, which are in float32 besides
        return int(sum(codes.values()) * manifest["items"] + entries_bytes(manifest) * len(codes))
    grid = (4 + MOST_CLASSES) * manifest["factors"]
    ranks = 4 * MOST_CLASSES * (1 + manifest["items"] // RANKED)
    return int(sum(codes.values()) * manifest["items"] + (grid + ranks + LISTED_BYTES) * len(codes))


def entries_bytes(manifest: Mapping[str, Any]) -> int:
    """Most bytes of the entries of a matrix's code books as float32."""
    return 4 * LAYERS[manifest["code_form"]] * (1 << MOST_BITS) * int(manifest["factors"])


def vector_terms(manifest: Mapping[str, Any], *, threads: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of codes, and of the blocks of rows that are decoded in each thread; of a filter's spectrum too."""
    factors = manifest["factors"]
    packing = PACKING_BYTES * max(0, factors - WARM_FACTORS)
    each = decoding_bytes(factors=factors, rows=decoded_rows(manifest)) + packing
    return [
        Term("codes of the items", stored_bytes(manifest), "analytic", phases),
        Term("decoded rows", threads * each, "analytic", phases),
    ]


def scorer_terms(
    manifest: Mapping[str, Any], *, block: int, threads: int, phases: tuple[str, ...], scoring: tuple[str, ...]
) -> list[Term]:
    """Terms of a loaded model of vectors that scores for ``block`` users at a time, in the phases ``scoring``."""
    items, factors, hyper = manifest["items"], manifest["factors"], manifest["hyper"]
    columns = -(-block // threads) * threads
    longest = manifest.get("longest", manifest["longest_history"])
    solves = manifest["kind"] in ("ials", "bpr")
    sampled = 4 * COMPARED * factors if hyper.get("user_vectors") == "learned" else 0
    prior = 4 * items * PRIOR_COLUMNS if hyper.get("prior") else 0
    folding = folding_bytes(factors=factors, longest=longest, solves=solves)
    return [
        *vector_terms(manifest, threads=threads, phases=phases),
        Term("history index", 8 * (manifest["users"] + 1), "analytic", phases),
        Term("Gramian", 4 * factors * factors * solves, "analytic", phases),
        Term("items to compare with", sampled + prior, "analytic", phases),
        Term("weights of the items", 12 * items * (manifest["kind"] == "linear"), "analytic", phases),
        Term("fold-in workspace of codes", threads * folding, "analytic", scoring),
        Term("scores", 4 * columns * (items + factors), "analytic", scoring),
    ]
