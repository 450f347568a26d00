"""What ``--where`` takes, in bytes, by what ``model.json`` says of the attributes that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apps.recsys.data.attributes.expression import comparisons, depth, parse
from apps.recsys.data.attributes.passing import check
from apps.recsys.data.attributes.stored import block_items
from common.memory.footprint import Term

TABLE_BYTES: Mapping[str, int] = {"text": 20, "number": 48, "truth": 48}
"""Memory of a distinct value while a comparison looks at all of them, besides its letters: an offset, twice, and the
answer; a number, and what looking for many takes, which sorts a copy."""
CODE_BYTES, ITEM_BYTES = 16, 40
"""Memory of a code, and of an item, in a block of items."""
TREE_BYTES, TEXT_TIMES = 600, 80
"""Memory of a comparison in Python, and of a character of the expression: a value of one letter is a token, a value,
and a row of a table."""
MASK = "items that pass"
"""Name of the term of masks."""
MOST_SERVED, LONGEST_SERVED = 20, 1000
"""Most comparisons and characters of an expression in a request to the server."""


def require_attributes(where: str | None, manifest: Mapping[str, Any]) -> None:
    """Check an expression against a model, before anything is planned; raises as ``where_terms``."""
    if where is not None:
        check(parse(where), manifest.get("attributes", []))


def where_terms(
    where: str | None, manifest: Mapping[str, Any], phases: Sequence[str], *, threads: int = 1
) -> list[Term]:
    """Terms of an expression.

    Parameters
    ----------
    where
        The expression; ``None``: there is none.
    manifest
        ``model.json``.
    phases
        Phases from the reading of the attributes on; the mask of the items stays in the later ones.
    threads
        Threads that rank.

    Raises
    ------
    UsageError, BadInput
        As ``expression.parse`` and ``passing.check``.
    """
    if where is None:
        return []
    tree = parse(where)
    attributes = {one["name"]: one for one in manifest.get("attributes", [])}
    check(tree, list(attributes.values()))
    named = [attributes[one.name] for one in comparisons(tree)]
    text = TEXT_TIMES * len(where)
    return _terms(named, text, manifest["items"], phases, deepest=depth(tree), threads=threads)


def served_where_terms(manifest: Mapping[str, Any], phases: Sequence[str]) -> list[Term]:
    """Terms of the largest expression of a request to the server; none for a model without attributes."""
    attributes = manifest.get("attributes", [])
    if not attributes:
        return []
    largest = max(attributes, key=lambda one: int(one["values"]))
    named = [*attributes, *[largest] * MOST_SERVED]
    return _terms(named, TEXT_TIMES * LONGEST_SERVED, manifest["items"], phases, deepest=MOST_SERVED, threads=1)


def _terms(
    named: Sequence[Mapping[str, Any]], text: int, items: int, phases: Sequence[str], *, deepest: int, threads: int
) -> list[Term]:
    """Terms of comparisons of the attributes ``named``, each as often as it is compared."""
    tables = max(TABLE_BYTES[one["kind"]] * one["values"] + one["letters"] for one in named)
    # An expression of some of them may be one of those that none has several values of.
    kinds = ([one for one in named if one["several"] is several] for several in (False, True))
    blocks = (_block(some, items, deepest) for some in kinds if some)
    matching = sum(1 + one["values"] + TREE_BYTES for one in named)
    reading = max(tables, *blocks)
    return [
        Term("attributes", reading + matching + text, "analytic", tuple(phases[:1])),
        Term(MASK, (1 + threads) * items, "analytic", tuple(phases)),
    ]


def _block(named: Sequence[Mapping[str, Any]], items: int, deepest: int) -> int:
    block = min(block_items(named), items)
    codes = max(min(int(one["entries"]), block * int(one["longest"])) for one in named)
    return CODE_BYTES * codes + (ITEM_BYTES + deepest) * block
