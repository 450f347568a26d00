"""Rows of text formats that Arrow does not parse as this suite needs them: lists of ids, and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from apps.recsys.data.formats.unpacked import open_text
from common.errors import BadInput

SOME_LINES = 1 << 10
"""Lines read at a time."""
LONGEST_LINE = 8 << 20
"""Most characters of a line; a longer one is refused."""


def _lines(path: Path, what: str) -> Iterator[list[tuple[int, str]]]:
    """Yield some lines at a time, with their numbers; raises ``BadInput`` at one that is too long."""
    with open_text(path) as stream:
        number = 0
        while lines := [line for _ in range(SOME_LINES) if (line := stream.readline(LONGEST_LINE))]:
            for place, line in enumerate(lines, number + 1):
                if len(line) == LONGEST_LINE:
                    raise BadInput(f"{path}: line {place} is not {what}", public="unreadable input")
            yield list(enumerate(lines, number + 1))
            number += len(lines)


def list_batches(path: Path) -> Iterator[Any]:
    """Rows of a file of lists as Arrow batches with columns ``user`` and ``item``; a user without items has no row."""
    import pyarrow as pa

    for lines in _lines(path, "a list of ids"):
        users, items = pa.lib.StringBuilder(), pa.lib.StringBuilder()
        for _, line in lines:
            user, *rest = line.split() or [""]
            for item in rest:
                users.append(user)
                items.append(item)
        columns = {"user": users.finish(), "item": items.finish()}
        yield pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def json_batches(path: Path, names: Sequence[str], *, joins: bool = False) -> Iterator[Any]:
    """Some fields of JSON lines as Arrow batches of text; a field that a line lacks is null.

    Parameters
    ----------
    path
        The file.
    names
        Names of the fields.
    joins
        True to read an array of texts or numbers as text with ``|`` between them.

    Raises
    ------
    BadInput
        A line is not a JSON object, or a field is an array or an object; the message has the line's number.
    """
    import pyarrow as pa

    for lines in _lines(path, "a JSON object"):
        builders = [pa.lib.StringBuilder() for _ in names]
        for number, line in lines:
            if line.strip():
                row = json_object(path, number, line)
                for builder, name in zip(builders, names, strict=True):
                    builder.append(_text(path, number, name, row.get(name), joins=joins))
        yield pa.RecordBatch.from_arrays([builder.finish() for builder in builders], names=list(names))


def json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    """The object in a line; raises ``BadInput`` with the line's number if there is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise BadInput(f"{path}: line {number} is not a JSON object; each line holds one", public="unreadable input")
    return row


def _text(path: Path, number: int, name: str, value: Any, *, joins: bool = False) -> str | None:
    if joins and isinstance(value, list):
        return "|".join(_text(path, number, name, one) or "" for one in value)
    if isinstance(value, list | dict):
        raise BadInput(
            f"{path}: line {number}, field {name!r}: an array or an object, where a number or a text is expected",
            public="unreadable input",
        )
    if value is None or isinstance(value, str):
        return value
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return str(int(value)) if whole else str(value)
