"""Attributes of items from their table: every column but the ids and the titles, one column at a time.

Columns of Arrow and Parquet files are what their types say: numbers, truth values, text; dates become text as ISO 8601
writes it, which sorts by time. In text and JSON lines, a column of which every cell is a number is one of numbers, and
one of ``true`` and ``false`` one of truth values. Items have several values where the column holds lists, or where a
text has ``|`` between values (``Comedy|Drama``, as in MovieLens).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import arrow_numpy, readers
from apps.recsys.data.attributes import stored
from apps.recsys.data.attributes.stored import Attribute
from apps.recsys.data.formats import kinds
from apps.recsys.data.id_index import EMPTY, BadId, Vocabulary
from apps.recsys.data.readers import Source
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SEPARATOR = "|"
"""Between the values of an item in a text."""
NUMBER = r"^[+-]?((0|[1-9][0-9]*)([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]+)?$"
"""A number in text; 007 is none."""
TRUTH = r"^(?i:true|false)$"
"""A truth value in text."""
LINE_BYTES, ITEM_BYTES, VALUE_BYTES, ENTRY_BYTES = 8, 12, 40, 24
"""Memory of a line of the table (its item), of an item, of a distinct value and of a value of an item while a column
becomes codes. A million items, MiB predicted and measured beyond those of the same training without a table: distinct
texts 81 and 44, two categories an item 65 and 56."""
TEXT_BYTES = 1 << 22
"""Most bytes of distinct texts that are in memory at a time, but for very long ones."""


class _LeftOut(Exception):
    """A column that cannot be an attribute; the message says why."""


class KindMismatch(BadInput):
    """A column whose values are of another kind than the attribute of that name in a model."""


@dataclass(frozen=True, slots=True)
class Carried:
    """Attributes that a model has already: its items are the first of the ids, by their rows."""

    directory: Path
    """The model folder."""
    attributes: Sequence[Attribute]

    def columns(self) -> dict[str, stored.Column]:
        """The attributes by name."""
        places = enumerate(self.attributes)
        return {one["name"]: stored.Column(self.directory, place, one) for place, one in places}


@dataclass(frozen=True, slots=True)
class Collected:
    """The attributes that were written, those that were left out with the reason, and the memory that it took."""

    attributes: list[Attribute]
    left_out: list[tuple[str, str]]
    bytes: int


def collect(
    source: Source | None,
    names: Sequence[str],
    items: Vocabulary,
    keep: NDArray[np.bool_],
    directory: Path,
    carried: Carried | None = None,
) -> Collected:
    """Write columns of a table of items as attributes.

    Parameters
    ----------
    source
        The table, with ``columns.item`` set; ``None``: none, so that only what is carried is written.
    names
        Its columns that become attributes.
    items
        Ids of the interactions.
    keep
        Mask of the ids that are the model's items, by number.
    directory
        Folder of the files.
    carried
        Attributes that the items have already. A line of the table about an item replaces those of the table's columns.

    Raises
    ------
    BadInput
        The column of ids cannot be read; a column is of another kind than the attribute of that name.
    """
    before = carried.columns() if carried is not None else {}
    every = list(dict.fromkeys([*before, *names]))
    if not every:
        return Collected([], [], 0)
    rows = model_rows(keep)
    lines, count = _lines(source, items, rows), int(keep.sum())
    attributes: list[Attribute] = []
    left_out, most = [(name, f"more than {stored.MOST} columns") for name in every[stored.MOST :]], 0
    for name in every[: stored.MOST]:
        column = _Column(source if name in names else None, name, lines, directory)
        with closing(column.vocabulary):
            if name in before:
                column.carry(before[name], rows)
            try:
                attributes.append(column.write(count, len(attributes)))
            except _LeftOut as error:
                left_out.append((name, str(error)))
            except KindMismatch:
                raise
            except BadInput as error:
                left_out.append((name, str(error).removeprefix(f"{source.path if source else ''}: ")))
        most = max(most, column.bytes)
    return Collected(attributes, left_out, LINE_BYTES * len(lines) + ITEM_BYTES * count + most)


def model_rows(keep: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Row of each id in the model, -1 for those that are not kept: shape (ids,)."""
    import numpy as np

    return np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)


def _lines(source: Source | None, items: Vocabulary, rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """The model's row of each line of the table; -1 for another item, and for one that a later line has again."""
    import numpy as np

    parts = [np.zeros(0, np.int32)]
    for batch in readers.batches(source, [str(source.columns.item)]) if source is not None else ():
        numbers = items.find(batch.column(0))
        parts.append(np.where(numbers == EMPTY, np.int32(-1), rows[numbers]))
    lines = np.concatenate(parts)
    last = np.full(int(rows.max(initial=-1)) + 2, -1, np.int32)
    last[lines] = np.arange(len(lines), dtype=np.int32)  # of equal rows, the last line is stored; -1 is the last place
    lines[last[lines] != np.arange(len(lines))] = -1
    return lines


class _Column:
    """One column while it is read: values of items as pairs of a row and the number of a distinct value."""

    def __init__(self, source: Source | None, name: str, lines: NDArray[np.int32], directory: Path) -> None:
        self._source, self._name, self._lines, self._directory = source, name, lines, directory
        self.vocabulary = Vocabulary(directory, "attribute")
        self.several, self._kind, self._carried_kind = False, "", ""
        self._parts: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
        """Rows of items and numbers of their values."""
        self.bytes = 0
        """Memory that it took at most."""

    def carry(self, before: stored.Column, rows: NDArray[np.int32]) -> None:
        """Take the values that items have already, but for those about which the table has a line.

        Parameters
        ----------
        before
            The attribute in the model folder.
        rows
            New row of each of its items, -1 for those that are not kept; shape (items,) or more.

        Raises
        ------
        BadInput
            A file of the attribute is damaged.
        """
        import numpy as np

        self.several, self._carried_kind = before.attribute["several"], before.attribute["kind"]
        owners, codes = before.entries()
        new = rows[owners]
        stays = new >= 0
        if self._source is not None:
            stays &= ~np.isin(new, self._lines[self._lines >= 0])
        # Values that no item has any more, such as those of a forgotten user's own items, leave the model.
        used, places = np.unique(codes[stays], return_inverse=True)
        numbers = self.vocabulary.encode(before.values().take(arrow_numpy.numbers(used)))
        self._parts.append((new[stays], numbers[places]))

    def write(self, items: int, number: int) -> Attribute:
        """Read the column and write its files.

        Raises
        ------
        _LeftOut
            It has no value, or values that cannot be an attribute's.
        BadInput
            It cannot be read.
        """
        import numpy as np

        if self._source is not None:
            self._read(self._source)
        empty = np.zeros(0, np.int32)
        owners, codes = (np.concatenate([empty, *part]) for part in zip((empty, empty), *self._parts, strict=True))
        if not len(codes):
            raise _LeftOut("no item of the model has a value")
        if len(codes) >= stored.MOST_BYTES or self._letters() >= stored.MOST_BYTES:
            raise _LeftOut("more than 2 GiB of values")
        counts = np.bincount(owners, minlength=items)
        indptr = None
        if self.several:
            codes = codes[np.argsort(owners, kind="stable")] + 1
            indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        else:
            single = np.zeros(items, np.int32)
            single[owners] = codes + 1
            codes = single
        kind = self._carried_kind or self._kind or self._found_kind()
        if self._carried_kind and not self._fits(kind):
            raise KindMismatch(
                f"{self._source.path if self._source else ''}: column {self._name!r}: in the model this attribute is of"
                f" the kind {kind}, and these values are not",
                public="attribute of another kind",
            )
        values, letters = stored.write(
            self._directory, number, codes, indptr, self._values(kind), as_text=kind == "text"
        )
        self.bytes = VALUE_BYTES * values + ENTRY_BYTES * len(owners) + min(letters, TEXT_BYTES)
        return {
            "name": self._name,
            "kind": kind,  # type: ignore[typeddict-item]
            "several": self.several,
            "values": values,
            "entries": len(codes),
            "longest": int(counts.max()),
            "letters": letters,
        }

    def _read(self, source: Source) -> None:
        """Add the values of the table's items."""
        import pyarrow as pa

        at = 0
        for batch in readers.batches(source, [self._name], raw=True):
            rows = self._lines[at : at + batch.num_rows]
            at += batch.num_rows
            try:
                column, place = self._plain(batch.column(0), typed=source.parquet)
                rows = rows[place]
                good = kinds.present(column) & (rows >= 0)
                self._parts.append((rows[good], self.vocabulary.encode(column.filter(arrow_numpy.mask(good)))))
            except BadId as error:
                raise _LeftOut(f"a text {error}") from None
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
                raise _LeftOut(f"{batch.column(0).type} is neither text in UTF-8 nor numbers") from None

    def _fits(self, kind: str) -> bool:
        """True if the values that were read are of a kind."""
        if self._kind:
            return self._kind == kind
        return kind == "text" or self._all_match(NUMBER if kind == "number" else TRUTH)

    def _plain(self, column: Any, *, typed: bool) -> tuple[Any, NDArray[Any]]:
        """Values without lists, and the number of the line that each is from."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        column = kinds.plain(column)
        lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        if lists:
            self.several = True
            if pa.types.is_floating(column.type.value_type):
                raise _LeftOut("lists of numbers with decimals are vectors, not categories")
        elif pa.types.is_string(column.type) and arrow_numpy.truths(pc.match_substring(column, SEPARATOR)).any():
            self.several, lists = True, True
            column = pc.split_pattern(column, SEPARATOR)
        if lists:
            place = arrow_numpy.values(pc.list_parent_indices(column)).astype(np.int64)
            column = kinds.plain(pc.list_flatten(column))
        else:
            place = np.arange(len(column))
        return self._typed(column, typed=typed), place

    def _typed(self, column: Any, *, typed: bool) -> Any:
        """Values as text or numbers, by their type; sets the kind where the type decides it."""
        import pyarrow as pa
        import pyarrow.compute as pc

        types = pa.types
        if types.is_string(column.type):
            if typed:
                self._kind = "text"
            return kinds.ids(column, trim=True)
        if types.is_boolean(column.type):
            self._kind = "truth"
        elif types.is_integer(column.type) or types.is_floating(column.type) or types.is_decimal(column.type):
            self._kind = "number"
        elif types.is_date(column.type) or types.is_timestamp(column.type):
            self._kind = "text"
            return pc.strftime(column, format="%Y-%m-%d" if types.is_date(column.type) else "%Y-%m-%dT%H:%M:%S")
        else:
            raise _LeftOut(f"{str(column.type)[:60]} is neither text nor numbers")
        if types.is_float16(column.type):
            column = pc.cast(column, pa.float32())
        return kinds.ids(column)

    def _texts(self) -> Iterator[Any]:
        """The distinct values as text."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        for some in self.vocabulary.ids(np.ones(len(self.vocabulary), bool)):
            yield pc.cast(some, pa.string())

    def _letters(self) -> int:
        """Bytes of the distinct texts."""
        return sum(len(arrow_numpy.letters(some)[0]) for some in self._texts())

    def _found_kind(self) -> str:
        """What text of a file without types is: numbers, truth values, or text."""
        if self._all_match(NUMBER):
            return "number"
        return "truth" if self._all_match(TRUTH) else "text"

    def _all_match(self, pattern: str) -> bool:
        import pyarrow.compute as pc

        return all(arrow_numpy.truths(pc.match_substring_regex(some, pattern)).all() for some in self._texts())

    def _values(self, kind: str) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.compute as pc

        for texts in self._texts():
            if kind == "truth":
                texts = pc.cast(pc.equal(pc.utf8_lower(texts), arrow_numpy.text(["true"])[0]), pa.int8())
            yield texts if kind == "text" else pc.cast(texts, pa.float64())


def described(attributes: Sequence[Attribute], left_out: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Name the attributes of a model, and the columns that were left out, in a line each.

    Examples
    --------
    >>> list(described([], [("vector", "lists of numbers")]))
    ["attributes: 'vector' is left out: lists of numbers"]
    """
    if attributes:
        yield f"attributes for --where: {stored.listed(attributes)}"
    for name, why in left_out[:10]:
        yield f"attributes: {name!r} is left out: {why}"
    if len(left_out) > 10:
        yield f"attributes: {len(left_out) - 10:,} more columns are left out"
