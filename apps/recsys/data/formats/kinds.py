"""Columns by what they mean, whatever Arrow type they have: ids, texts, numbers and times.

Every text type of Arrow is read alike: ``string``, ``large_string``, ``string_view``, binary, dictionaries of these.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from apps.recsys.data import arrow_numpy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NOT_PARSED = re.compile(r"Failed to parse string: '(.*)' as a scalar of type|for value '(.*)'", re.DOTALL)
_ZONED = r":[0-9]{2}([.][0-9]+)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)$"
"""A time of day with its zone at the end."""
_CLEANED = (
    (r"[ ]*(z|UTC|GMT)$", "Z"),
    (r"[ ]+([+-][0-9]{2}:?[0-9]{2})$", r"\1"),
    (r"(:[0-9]{2}),([0-9]+)", r"\1.\2"),
    (r"([.][0-9]{6})[0-9]+", r"\1"),
)
"""Spellings of ISO 8601 that Arrow does not read, and what it reads instead; times are kept to the microsecond."""


class Unreadable(ValueError):
    """A column's content is not what it should be; the message says what is there."""


def plain(column: Any) -> Any:
    """The column itself, or its text as type ``string`` if it is of another text type."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    texts = (pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary, pa.types.is_large_binary)
    if pa.types.is_null(kind) or pa.types.is_binary_view(kind) or any(is_text(kind) for is_text in texts):
        return pc.cast(column, pa.string())
    return column


def ids(column: Any) -> Any:
    """Ids as text without spaces around it, or as numbers; NaN becomes null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = plain(column)
    if pa.types.is_string(column.type):
        return pc.ascii_trim_whitespace(column)
    if pa.types.is_floating(column.type):
        return pc.if_else(pc.is_nan(column), _null(column.type), column)
    return column


def present(column: Any) -> NDArray[np.bool_]:
    """Mask of the ids, as ``ids`` returns them, that are neither null nor empty text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    valid = arrow_numpy.valid(column)
    return valid & (arrow_numpy.values(pc.binary_length(column)) > 0) if pa.types.is_string(column.type) else valid


def texts(column: Any) -> list[str | None]:
    """The column as texts; ``None`` for null and NaN."""
    return [None if value is None else str(value) for value in ids(column).to_pylist()]


def numbers(column: Any, decimal: str = ".") -> Any:
    """The column as float64; null where its text is empty.

    Parameters
    ----------
    column
        An Arrow array, shape (n,).
    decimal
        Decimal mark in text.

    Raises
    ------
    Unreadable
        Something is no number.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.type == pa.float64():
        return column
    column = plain(column)
    if pa.types.is_string(column.type):
        column = _filled(column)
        column = column if decimal == "." else pc.replace_substring(column, decimal, ".")
    try:
        return pc.cast(column, pa.float64(), safe=False)
    except pa.ArrowInvalid as error:
        raise Unreadable(f"{_found(error)} is not a number") from None
    except pa.ArrowNotImplementedError:
        raise Unreadable(f"{column.type} is not a number") from None


def times(column: Any) -> Any:
    """Times as float64: numbers as they are, dates as seconds since 1970 in UTC (where no zone is named, too).

    Dates are ISO 8601, with or without a zone, to the microsecond; or any of Arrow's dates and timestamps.

    Raises
    ------
    Unreadable
        Something is neither a number nor a date.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = plain(column)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        zone = column.type.tz if pa.types.is_timestamp(column.type) else None
        return _seconds(pc.cast(column, pa.timestamp("us", zone), safe=False))
    if not pa.types.is_string(column.type):
        return numbers(column)
    column = _filled(column)
    try:
        return pc.cast(column, pa.float64())
    except pa.ArrowInvalid:
        return _dates(column)


def _dates(column: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    cleaned = column
    for pattern, other in _CLEANED:
        cleaned = pc.replace_substring_regex(cleaned, pattern, other)
    zoned = pc.match_substring_regex(cleaned, _ZONED)
    absent = _null(pa.string())
    try:
        there = pc.cast(pc.if_else(zoned, cleaned, absent), pa.timestamp("us", "UTC"))
        here = pc.cast(pc.if_else(zoned, absent, cleaned), pa.timestamp("us"))
    except pa.ArrowInvalid as error:
        raise Unreadable(f"{_found(error)} is neither a number nor a date as ISO 8601 writes it") from None
    return pc.coalesce(_seconds(there), _seconds(here))


def _seconds(stamps: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    micro = pc.cast(pc.cast(stamps, pa.int64()), pa.float64(), safe=False)
    return pc.divide(micro, pc.cast(arrow_numpy.text(["1e6"]), pa.float64())[0])


def _filled(column: Any) -> Any:
    """Text without spaces around it; null where nothing is left."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = pc.ascii_trim_whitespace(column)
    empty = pc.equal(pc.binary_length(column), pc.cast(arrow_numpy.text(["0"]), pa.int32())[0])
    return pc.if_else(empty, _null(column.type), column)


def _null(kind: Any) -> Any:
    """A null of a type. (``pa.scalar`` imports pandas.)"""
    import pyarrow.compute as pc

    return pc.cast(arrow_numpy.text([None]), kind)[0]


def _found(error: Exception) -> str:
    """The text that Arrow could not convert, quoted."""
    match = _NOT_PARSED.search(str(error))
    return repr((match[1] or match[2])[:80]) if match else "something there"
