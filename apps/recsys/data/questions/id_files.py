"""Read files of ids that belong to a question: users, candidates, the items of one history, or many histories.

Nothing here keeps more than a line of text or a batch of a column. Text may be packed, as for ``recsys train``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apps.recsys.data import arrow_numpy
from apps.recsys.data.columns import named_column
from apps.recsys.data.formats import kinds
from apps.recsys.data.formats.unpacked import format_suffix, open_text
from apps.recsys.data.headers import is_arrow, is_parquet
from common.errors import BadInput

LONGEST_LINE = 1 << 20
"""Most characters of a line; a longer one is refused, so that a line's memory has a bound."""
BATCH_ROWS = 1 << 13
"""Rows of a Parquet file read at a time."""
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


def ids(path: Path, what: str) -> Iterator[str]:
    """Yield the ids of a file, each once for every time that it is there.

    A ``.csv`` or ``.tsv`` file, Parquet and Arrow have a column with the ids, found by its usual names or because it is
    the only one. JSON lines hold an id, a list of ids or an object with such a field. Any other text is an id a line.

    Parameters
    ----------
    path
        The file.
    what
        ``"user"`` or ``"item"``.

    Raises
    ------
    BadInput
        The file cannot be read, or has several columns of which none is named like ids.
    """
    _check(path)
    if is_parquet(path) or is_arrow(path):
        for value in _column(path, what):
            yield from _as_ids(path, 0, value)
    elif format_suffix(path) in (".csv", ".tsv"):
        yield from _csv_column(path, what)
    else:
        as_json = format_suffix(path) in _JSON_SUFFIXES
        for number, line in _lines(path):
            if text := line.strip():
                yield from _json_ids(path, number, text, what) if as_json else [text]


def histories(path: Path) -> Iterator[list[str]]:
    """Yield the lists of ids in a file: JSON lines, a list column of Parquet or Arrow, or text with a list a line.

    A JSON line is a list, or an object of which one field is a list. In text, ids are separated by commas, and one with
    a comma stands in quotes; in a file without commas, by tabs, and in one without these, by spaces. Empty lines of
    text are no histories; an empty JSON list is one.

    Raises
    ------
    BadInput
        The file cannot be read; the message names the line.
    """
    _check(path)
    if is_parquet(path) or is_arrow(path):
        for value in _column(path, "history"):
            yield _as_ids(path, 0, value if value is not None else [])
        return
    if format_suffix(path) in _JSON_SUFFIXES or _first_letter(path) in ("[", "{"):
        for number, line in _lines(path):
            if text := line.strip():
                yield _json_ids(path, number, text, "history")
        return
    separator = _separator(path)
    for number, line in _lines(path):
        try:
            rows = csv.reader([line.strip("\r\n")], delimiter=separator, skipinitialspace=True)
            listed = [id_.strip() for row in rows for id_ in row if id_.strip()]
        except csv.Error as error:
            raise _unreadable(path, number, str(error)) from None
        if listed:
            yield listed


def _check(path: Path) -> None:
    if not path.is_file():
        raise BadInput(f"{path}: no such file", public="no such file")


def _unreadable(path: Path, number: int, why: str) -> BadInput:
    where = f"line {number}: " if number else ""
    return BadInput(f"{path}: {where}{why}", public="unreadable ids")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers."""
    number = 0
    try:
        with open_text(path) as stream:
            while line := stream.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise _unreadable(path, number, f"longer than {LONGEST_LINE:,} characters")
                if "\0" in line:
                    raise _unreadable(path, number, "not text")
                yield number, line
    except (OSError, EOFError, UnicodeDecodeError) as error:
        why = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise _unreadable(path, number + 1, why) from None


def _first_letter(path: Path) -> str:
    return next((text[0] for _, line in _lines(path) if (text := line.strip())), "")


def _separator(path: Path) -> str:
    tabs = False
    for _, line in _lines(path):
        if "," in line:
            return ","
        tabs = tabs or "\t" in line.strip()
    return "\t" if tabs else " "


def _csv_column(path: Path, what: str) -> Iterator[str]:
    """Yield the ids of a column of text; a first line without a usual name is data if it has one cell."""
    separator = "\t" if format_suffix(path) == ".tsv" else ","
    rows = csv.reader((line for _, line in _lines(path)), delimiter=separator, skipinitialspace=True)
    place: int | None = None
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise _unreadable(path, rows.line_num, str(error)) from None
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if place is None:
            name = named_column(row, what)
            if name is None and len(row) > 1:
                raise _no_column(path, row, what)
            place = 0 if name is None else row.index(name)
            if name is not None:
                continue
        if place < len(row) and (id_ := row[place].strip()):
            yield id_


def _no_column(path: Path, names: list[str], what: str) -> BadInput:
    found = ", ".join(names)
    return BadInput(f"{path}: no column is named {what} or {what}_id; it has {found}", public="no such column")


def _column(path: Path, what: str) -> Iterator[Any]:
    """Yield the values of a column of a Parquet or Arrow file; for ``"history"`` one of lists."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    native = arrow_numpy.native(path)
    try:
        if is_parquet(path):
            with pq.ParquetFile(native, pre_buffer=False) as file:
                name = _column_name(path, file.schema_arrow, what)
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[name], use_threads=False):
                    yield from _values(batch.column(0), what)
            return
        with pa.OSFile(native) as stream:
            table = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(use_threads=False))
            place = table.schema.get_field_index(_column_name(path, table.schema, what))
            for number in range(table.num_record_batches):
                column = table.get_batch(number).column(place)
                for start in range(0, len(column), BATCH_ROWS):
                    yield from _values(column.slice(start, BATCH_ROWS), what)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, 0, str(error).partition("\n")[0]) from None


def _column_name(path: Path, schema: Any, what: str) -> str:
    import pyarrow as pa

    lists = [field.name for field in schema if pa.types.is_list(field.type) or pa.types.is_large_list(field.type)]
    if what == "history":
        if len(lists) != 1:
            raise _unreadable(path, 0, f"expected one column of lists; it has {', '.join(schema.names)}")
        return str(lists[0])
    name = named_column(schema.names, what) or (schema.names[0] if len(schema.names) == 1 else None)
    if name is None:
        raise _no_column(path, schema.names, what)
    return str(name)


def _values(column: Any, what: str) -> list[Any]:
    return list(column.to_pylist() if what == "history" else kinds.ids(column).to_pylist())


def _json_ids(path: Path, number: int, text: str, what: str) -> list[str]:
    """The ids of a JSON line."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _unreadable(path, number, "not JSON; each line holds a list of ids") from None
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        name = named_column(list(value), what)
        if what != "history" and name is not None:
            value = value[name]
        elif len(lists) == 1:
            (value,) = lists
        else:
            raise _unreadable(path, number, "expected a list of ids, or an object with one list")
    if what == "history" and not isinstance(value, list):
        raise _unreadable(path, number, "expected a list of ids, or an object with one list")
    return _as_ids(path, number, value)


def _as_ids(path: Path, number: int, value: Any) -> list[str]:
    """Ids of JSON or Arrow as text: a value, or the values of a list; nulls and empty texts are left out."""
    listed = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, float) and one.is_integer() and abs(one) < 1e15:
            one = int(one)
        if isinstance(one, bool) or not isinstance(one, str | int | None):
            raise _unreadable(path, number, f"expected ids, whole numbers or texts, not {type(one).__name__}")
        if isinstance(one, str) and not arrow_numpy.is_text(one):
            raise _unreadable(path, number, "an id with half of a surrogate pair is no text")
        if one not in (None, ""):
            listed.append(str(one))
    return listed
