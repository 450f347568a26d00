"""A Parquet file of ids, and for items titles, in the order of a model's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import arrow_numpy
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


LOOKED_UP = 1 << 16
"""Ids of a table that are compared with those that are looked up at a time."""


class IdTable:
    """Ids, and for items titles, by row.

    An id is found by scanning the Arrow column: a dictionary would be a second copy of all ids.

    Parameters
    ----------
    path
        A file that ``write_table`` wrote.
    rows
        Number of ids that it must have; ``None``: any.

    Raises
    ------
    BadInput
        It is another file, is damaged, or has another number of ids.
    """

    def __init__(self, path: Path, rows: int | None = None) -> None:
        import pyarrow as pa

        try:
            columns = arrow_numpy.read_columns(path, ("id", "title"))
            ids = columns["id"]
            if isinstance(ids, pa.ChunkedArray):
                ids = ids.chunk(0) if ids.num_chunks == 1 else ids.combine_chunks()
            self._ids = ids
        except (pa.ArrowInvalid, OSError, KeyError, IndexError) as error:
            why = str(error).partition("\n")[0]
            raise BadInput(f"{path}: not a table of ids ({why})", public="model file corrupt") from None
        kinds = (pa.types.is_int64, pa.types.is_string)
        if not any(is_kind(self._ids.type) for is_kind in kinds) or self._ids.null_count:
            raise BadInput(f"{path}: ids of type {self._ids.type}, or without a value", public="model file corrupt")
        if rows not in (None, len(self._ids)):
            raise BadInput(f"{path}: {len(self._ids):,} ids, the manifest says {rows:,}", public="model file corrupt")
        self._numbers: NDArray[np.int64] | None = arrow_numpy.values(self._ids) if self.whole else None
        """Ids that are integers, as a view."""
        self._titles = columns.get("title")

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def whole(self) -> bool:
        """True if the ids are integers, not text."""
        import pyarrow as pa

        return bool(pa.types.is_integer(self._ids.type))

    def possible(self, id_: str) -> bool:
        """True if an id given as text could stand in such a table: it is text, and a whole number among such."""
        return arrow_numpy.is_text(id_) and (not self.whole or id_.removeprefix("-").isdecimal())

    def row(self, id_: str) -> int | None:
        """Row of an id given as text; ``None`` if it is not in the table."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._numbers is not None and id_.isascii() and id_.isdecimal() and len(id_) < 18:
            # As the cast below, ten times as fast.
            found = np.flatnonzero(self._numbers == int(id_))
            return int(found[0]) if len(found) else None
        try:
            value = pc.cast(arrow_numpy.text([id_]), self._ids.type)[0]
        except (pa.ArrowInvalid, UnicodeEncodeError):  # no integer, in a table of integers; or bytes that are no text
            return None
        row: int = pc.index(self._ids, value).as_py()
        return row if row >= 0 else None

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of ids given as text, shape (n,); -1 for those that are not in the table. One scan finds all of them.

        In a table of integers, text is an id only in the form in which an integer would be written.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        positions = {id_: position for position, id_ in enumerate(dict.fromkeys(ids))}
        values = arrow_numpy.text(id_ if arrow_numpy.is_text(id_) else None for id_ in positions)
        if pa.types.is_integer(self._ids.type):
            plain = pc.match_substring_regex(values, r"^(0|-?[1-9][0-9]{0,17})$")
            values = pc.cast(pc.if_else(plain, values, arrow_numpy.text([None])[0]), self._ids.type)
        rows = np.full(len(positions), -1, np.int64)
        for start in range(0, len(self._ids), LOOKED_UP):
            matches = pc.index_in(self._ids.slice(start, LOOKED_UP), value_set=values)
            present = np.flatnonzero(arrow_numpy.valid(matches))
            rows[arrow_numpy.values(matches)[present]] = present + start
        return rows[[positions[id_] for id_ in ids]]

    def allowed(
        self,
        only: Sequence[str] | None,
        exclude: Sequence[str] | None,
        say: Callable[[str], object],
        *,
        option: str = "--only",
        strict: bool = False,
    ) -> NDArray[np.bool_] | None:
        """Mask of items that may be recommended, shape (items,); ``None``: all.

        An id that is not in the table changes nothing, and is counted in a line.

        Parameters
        ----------
        only, exclude
            Ids to choose from, and ids never to recommend; ``None``: no such limit.
        say
            Called with a line about unknown ids.
        option
            Name of the option that ``only`` was given by.
        strict
            True to refuse unknown ids.

        Raises
        ------
        BadInput
            None of the ids in ``only`` is in the table; with ``strict``, any id is not.
        """
        import numpy as np

        if only is None and exclude is None:
            return None
        allowed = np.full(len(self), only is None)
        for name, ids, value in ((option, only, True), ("--exclude", exclude, False)):
            if ids is not None:
                rows, line = self.known_rows(ids, name, strict=strict)
                if value and not len(rows):
                    others = ", nor any of the others" if len(ids) > 1 else ""
                    raise BadInput(f"{name}: item {ids[0]!r} is not in the model{others}", public="unknown items")
                if line:
                    say(line)
                allowed[rows] = value
        return allowed

    def known_rows(self, ids: Sequence[str], option: str, *, strict: bool = False) -> tuple[NDArray[np.int64], str]:
        """Rows of the ids that are in the table, and a line that counts the others, empty if there are none.

        Parameters
        ----------
        ids
            Ids as text.
        option
            Name of the option that they were given by.
        strict
            True to refuse unknown ids.

        Raises
        ------
        BadInput
            With ``strict``: an id is not in the table.
        """
        rows = self.rows(ids)
        unknown = int((rows < 0).sum())
        line = unknown_line(option, unknown, len(ids), ids[int((rows < 0).argmax())]) if unknown else ""
        if line and strict:
            raise BadInput(line, public="unknown ids")
        return rows[rows >= 0], line

    def matching(self, text: str) -> NDArray[np.bool_]:
        """Mask of the rows whose title contains a text, shape (rows,).

        Letters' case does not count. Every row contains the empty text.
        """
        import numpy as np
        import pyarrow.compute as pc

        if not text:
            return np.ones(len(self), bool)
        found = np.zeros(len(self), bool)
        if self._titles is not None and arrow_numpy.is_text(text):
            start = 0
            for part in self._titles.chunks:
                hits = pc.match_substring(part, text, ignore_case=True)
                found[start : start + len(part)] = arrow_numpy.truths(hits)  # not by ``fill_null``: it loads pandas
                start += len(part)
        return found

    def id(self, row: int) -> int | str:
        """The id of a row, as it was in the input."""
        id_: int | str = self._ids[int(row)].as_py()
        return id_

    def listed(self, rows: Sequence[int]) -> list[tuple[int | str, str]]:
        """Ids and titles of a few rows, as ``id`` and ``title``."""
        ids = [self.id(row) for row in rows] if self._numbers is None else self._numbers[list(rows)].tolist()
        titles = [""] * len(ids) if self._titles is None else [self.title(row) for row in rows]
        return list(zip(ids, titles, strict=True))

    def ids(self, rows: NDArray[np.int32]) -> Any:
        """The ids of some rows as an Arrow array."""
        return self._ids.take(arrow_numpy.numbers(rows))

    def title(self, row: int) -> str:
        """The title of a row; empty if it has none."""
        return "" if self._titles is None else str(self._titles[int(row)].as_py() or "")

    def titles(self, rows: NDArray[np.int32]) -> Any:
        """The titles of some rows as an Arrow array; ``None`` if the table has none."""
        return None if self._titles is None else self._titles.combine_chunks().take(arrow_numpy.numbers(rows))


def unknown_line(option: str, unknown: int, named: int, first: str) -> str:
    """Count the ids of an option that a model does not have, in a line.

    Examples
    --------
    >>> unknown_line("--exclude", 2, 3, "x")
    "--exclude: 2 of 3 ids are not in the model ('x')"
    """
    return f"{option}: {unknown:,} of {named:,} ids are not in the model ({first!r})"


def write_table(path: Path, ids: Iterable[Any], titles: Any = None) -> None:
    """Write a table of ids and titles, uncompressed, so that the file's size is that of the loaded table.

    Parameters
    ----------
    path
        The file.
    ids
        Arrow arrays, one after the other.
    titles
        One Arrow array of all titles; ``None``: there are no titles.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, rows = None, 0
    for part in ids:
        columns = {"row": arrow_numpy.numbers(np.arange(rows, rows + len(part), dtype=np.int32)), "id": part}
        if titles is not None:
            columns["title"] = titles.slice(rows, len(part))
        rows += len(part)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(
            arrow_numpy.native(path), table.schema, compression="none", use_dictionary=False
        )
        writer.write_table(table)
    if writer is not None:
        writer.close()
