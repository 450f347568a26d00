"""Which items pass an expression of ``--where``: a mask, made block by block from the attributes that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import arrow_numpy
from apps.recsys.data.attributes.expression import Comparison, Expression, Value, comparisons, parse
from apps.recsys.data.attributes.stored import Attribute, Column, block_items, listed
from common.errors import BadInput, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TRUTHS = {"true": 1.0, "false": 0.0}
"""Words of truth values, and their numbers."""
_ARROW = {"<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal"}


class UnknownAttribute(BadInput):
    """A name that is no attribute of the model's items."""


def check(tree: Expression, attributes: Sequence[Attribute]) -> None:
    """Check that a model has the attributes of an expression, and that they compare with its values.

    Parameters
    ----------
    tree
        From ``expression.parse``.
    attributes
        Those of the model, as ``model.json`` describes them.

    Raises
    ------
    UnknownAttribute
        The model has no such attribute; the message lists those that it has.
    UsageError
        A value is of another kind than its attribute.
    """
    found = {attribute["name"]: attribute for attribute in attributes}
    for one in comparisons(tree):
        if one.name not in found:
            there = f"it has {listed(attributes)}" if attributes else "it has none: train with --items"
            raise UnknownAttribute(
                f"--where: the model's items have no attribute {one.name!r}; {there}", public="no such attribute"
            )
        _check_kinds(one, found[one.name]["kind"])


def _check_kinds(one: Comparison, kind: str) -> None:
    fitting = {"number": ("number",), "text": ("word", "text"), "truth": ("word",)}[kind]
    for value in one.values:
        wrong = value.kind not in fitting or (kind == "truth" and value.text.lower() not in TRUTHS)
        if wrong:
            shown = repr(value.text[:40]) if value.kind == "text" else value.text[:40]
            what = {"number": "a number", "text": "text", "truth": "true or false"}[kind]
            hint = f"; text stands in quotes: '{value.text[:40]}'" if kind == "text" else ""
            raise UsageError(
                f"--where: {one.name} is {what}, and {shown} at character {value.position} does not compare with"
                f" it{hint}"
            )
    if kind == "truth" and one.operator not in ("=", "in"):
        raise UsageError(f"--where: {one.name} is true or false, and has no order: {one.operator} does not fit")


SMALL = 1 << 12
"""Distinct values of the attributes of an expression that is kept for the next time."""


class Kept:
    """The last expressions of a model, with their files open: to open and to parse one takes half a millisecond.

    Parameters
    ----------
    directory, manifest
        The model folder and its ``model.json``.
    most
        Number of expressions that are kept.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any], most: int = 8) -> None:
        self._directory, self._manifest, self._most = directory, manifest, most
        self._kept: dict[str, _Passing] = {}

    def limited(
        self, allowed: NDArray[np.bool_] | None, where: str | None, say: Callable[[str], object]
    ) -> NDArray[np.bool_] | None:
        """As the function ``limited``; of a kept expression nothing is said about values that no item has."""
        return allowed if where is None else _masked(self._of(where, say), allowed, self._manifest["items"], say)

    def masks(self, where: str) -> Callable[[], NDArray[np.bool_]] | None:
        """What makes the mask of an expression; ``None`` if the expression is too large to be kept. Raises as it."""
        passing = self._of(where, lambda line: None)
        return partial(passing.mask, self._manifest["items"]) if where in self._kept else None

    def _of(self, where: str, say: Callable[[str], object]) -> _Passing:
        passing = self._kept.pop(where, None) or _made(where, self._directory, self._manifest, say)
        if passing.values <= SMALL:
            self._kept[where] = passing
            if len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]
        return passing


def limited(
    allowed: NDArray[np.bool_] | None,
    where: str | None,
    directory: Path,
    manifest: Mapping[str, Any],
    say: Callable[[str], object],
) -> NDArray[np.bool_] | None:
    """Restrict a mask of items to those that pass an expression.

    Parameters
    ----------
    allowed
        Mask of items, shape (items,), which is changed; ``None``: all.
    where
        The expression; ``None``: no restriction.
    directory, manifest
        The model folder and its ``model.json``.
    say
        Called with a line about values that no item has, and where no item passes.

    Raises
    ------
    UsageError, BadInput
        As ``expression.parse`` and ``check``; a file of an attribute is damaged.
    """
    if where is None:
        return allowed
    return _masked(_made(where, directory, manifest, say), allowed, manifest["items"], say)


def _made(where: str, directory: Path, manifest: Mapping[str, Any], say: Callable[[str], object]) -> _Passing:
    tree, attributes = parse(where), manifest.get("attributes", [])
    check(tree, attributes)
    return _Passing(directory, attributes, tree, say)


def _masked(
    passing: _Passing, allowed: NDArray[np.bool_] | None, items: int, say: Callable[[str], object]
) -> NDArray[np.bool_]:
    mask = passing.mask(items)
    if allowed is not None:
        mask &= allowed
    if not mask.any():
        say("--where: no item passes, so the list is empty")
    return mask


class _Passing:
    """The columns of an expression, and for each comparison the distinct values that match."""

    def __init__(
        self, directory: Path, attributes: Sequence[Attribute], tree: Expression, say: Callable[[str], object]
    ) -> None:
        self._tree, self._say = tree, say
        places = {attribute["name"]: place for place, attribute in reversed([*enumerate(attributes)])}
        self._columns: dict[str, Column] = {}
        self._hits: dict[int, NDArray[np.bool_]] = {}
        for one in comparisons(tree):
            if one.name not in self._columns:
                place = places[one.name]
                self._columns[one.name] = Column(directory, place, attributes[place])
            self._hits[id(one)] = self._matching(one, self._columns[one.name])

    @property
    def values(self) -> int:
        """Distinct values of all comparisons."""
        return sum(map(len, self._hits.values()))

    def _matching(self, one: Comparison, column: Column) -> NDArray[np.bool_]:
        """Mask of the codes that a comparison matches, shape (values + 1,); code 0 is no value."""
        import numpy as np

        hits = np.zeros(column.attribute["values"] + 1, bool)
        if column.attribute["kind"] == "text":
            hits[1:] = self._texts(one, column.texts())
        else:
            numbers = [value.number if value.kind == "number" else TRUTHS[value.text.lower()] for value in one.values]
            values = column.numbers()
            with np.errstate(invalid="ignore"):
                hits[1:] = np.isin(values, numbers) if one.operator in ("=", "in") else _ordered(values, one, numbers)
        return hits

    def _texts(self, one: Comparison, texts: Any) -> NDArray[np.bool_]:
        import numpy as np
        import pyarrow.compute as pc

        wanted = arrow_numpy.text(value.text for value in one.values)
        if one.operator not in ("=", "in"):
            return arrow_numpy.truths(getattr(pc, _ARROW[one.operator])(texts, wanted[0]))
        places = pc.index_in(texts, value_set=wanted)
        there = arrow_numpy.valid(places)
        absent = np.ones(len(wanted), bool)
        absent[arrow_numpy.values(places)[there]] = False
        if absent.any() and len(dict.fromkeys(value.text for value in one.values)) == len(wanted):
            self._absent(one, [value for value, is_absent in zip(one.values, absent, strict=True) if is_absent])
        return there

    def _absent(self, one: Comparison, values: Sequence[Value]) -> None:
        more = f" (nor {len(values) - 1:,} more)" if len(values) > 1 else ""
        self._say(f"--where: no item has {one.name} = {values[0].text[:80]!r}{more}; letters' case counts")

    def mask(self, items: int) -> NDArray[np.bool_]:
        """Mask of the items that pass, shape (items,)."""
        import numpy as np

        mask = np.empty(items, bool)
        block = block_items(column.attribute for column in self._columns.values())
        for start in range(0, items, block):
            stop = min(start + block, items)
            mask[start:stop] = self._block(self._tree, start, stop)
        return mask

    def _block(self, tree: Expression, start: int, stop: int) -> NDArray[np.bool_]:
        if isinstance(tree, Comparison):
            return self._columns[tree.name].matches(start, stop, self._hits[id(tree)], negated=tree.negated)
        mask = self._block(tree.parts[0], start, stop)
        for part in tree.parts[1:]:
            other = self._block(part, start, stop)
            if tree.all_of:
                mask &= other
            else:
                mask |= other
        return mask


def _ordered(values: NDArray[np.float64], one: Comparison, numbers: Sequence[float]) -> NDArray[np.bool_]:
    import numpy as np

    ordered: NDArray[np.bool_] = getattr(np, _ARROW[one.operator])(values, numbers[0])
    return ordered
