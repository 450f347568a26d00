"""Interaction files as a stream of Arrow batches: CSV (plain or gzip) and Parquet, columns found by name.

The text is never whole in memory: Arrow parses one block at a time. Ids are read as text, so that any type of id
works and ``007`` stays ``007``.
"""

import csv
import gzip
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError

BLOCK_BYTES = 1 << 19
"""Text parsed at a time."""
PARQUET_ROWS = 1 << 15
"""Parquet rows decoded at a time."""

USER_NAMES = ("user", "userid", "uid", "customer", "customerid", "visitorid", "reviewerid")
ITEM_NAMES = ("item", "itemid", "iid", "movieid", "artistid", "trackid", "songid", "bookid", "productid", "asin")
VALUE_NAMES = ("value", "rating", "weight", "count", "playcount", "plays", "quantity", "score")
TIME_NAMES = ("time", "timestamp", "ts", "date", "datetime", "seq")
TITLE_NAMES = ("title", "name", "label")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read; ``None``: not there, or not wanted."""

    user: str | None = None
    item: str | None = None
    value: str | None = None
    time: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One input file whose header has been checked."""

    path: Path
    columns: Columns
    delimiter: str = ","

    @property
    def parquet(self) -> bool:
        """Whether it is read as Parquet; everything else is text."""
        return _is_parquet(self.path)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".pq")


def open_source(path: Path, wanted: Columns) -> Source:
    """Check that a file is there and has the columns; cheap, reads the header only.

    Parameters
    ----------
    wanted
        Names given by the user; a ``None`` is looked up by common names, and user and item then by position.

    Raises
    ------
    InputError
        Missing or empty file, unreadable header, or no such column (the message lists what there is).
    """
    names, delimiter = header(path)
    for name in (wanted.user, wanted.item, wanted.value, wanted.time):
        if name is not None and name not in names:
            raise InputError(f"{path}: no column {name!r}; it has {', '.join(names)}", public="no such column")
    if len(names) < 2:
        raise InputError(
            f"{path}: one column only ({names[0]!r}); a user and an item are needed", public="too few columns"
        )
    user = wanted.user or _by_name(names, USER_NAMES, taken={wanted.item})
    item = wanted.item or _by_name(names, ITEM_NAMES, taken={user})
    if user is None and item is None and all(_is_number(name) for name in names):
        first = delimiter.join(names)
        raise InputError(f"{path}: the first line is data ({first}); put column names above it", public="no header")
    rest = [name for name in names if name not in (user, item)]
    user = user or rest.pop(0)
    item = item or rest.pop(0)
    value = wanted.value or _by_name(names, VALUE_NAMES, taken={user, item})
    time = wanted.time or _by_name(names, TIME_NAMES, taken={user, item, value})
    return Source(path, Columns(user, item, value, time), delimiter)


def open_titles(path: Path) -> tuple[Source, str]:
    """The same for a table of items: its source (``columns.item`` is set) and the name of the title's column."""
    names, delimiter = header(path)
    item = _by_name(names, (*ITEM_NAMES, "id"), taken=set()) or names[0]
    title = _by_name(names, TITLE_NAMES, taken={item}) or next((name for name in names if name != item), None)
    if title is None:
        raise InputError(f"{path}: no column with titles; it has {', '.join(names)}", public="no such column")
    return Source(path, Columns(item=item), delimiter), title


def header(path: Path) -> tuple[list[str], str]:
    """Column names and delimiter of a file, without reading its rows."""
    if not path.is_file():
        raise InputError(f"{path}: no such file", public="no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty", public="empty file")
    if _is_parquet(path):
        return _parquet_header(path), ","
    try:
        with open_text(path) as stream:
            line = stream.readline(1 << 16)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable CSV file ({error})", public="unreadable file") from None
    if not line.strip():
        raise InputError(f"{path}: the file is empty", public="empty file")
    delimiter = max(",\t;|", key=line.count)
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two columns have the same name: {', '.join(names)}", public="repeated column")
    return names, delimiter


def _parquet_header(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a Parquet file ({error})", public="unreadable file") from None


def open_text(path: Path) -> Any:
    """A text stream of a plain or gzip file, without its byte order mark."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open("rt", encoding="utf-8-sig", newline="")


def _by_name(names: Sequence[str], known: Sequence[str], taken: set[str | None]) -> str | None:
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(names) if name not in taken}
    return next((plain[name] for name in known if name in plain), None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def batches(
    source: Source, names: Sequence[str], *, number: str | None = None, time: str | None = None
) -> Iterator[Any]:
    """Record batches with the columns ``names``: ids as they are, ``number`` and ``time`` as float64.

    A time is a number, or an ISO 8601 date (microseconds then).

    Raises
    ------
    InputError
        A row of another length, a value that is not a number (with row and column), a damaged file.
    """
    import pyarrow as pa

    read = _parquet_batches(source, list(names)) if source.parquet else _csv_batches(source, list(names), number)
    try:
        for batch in read:
            convert = {number: _number, time: _time}
            columns = [convert.get(name, lambda column: column)(batch.column(name)) for name in names]
            yield pa.RecordBatch.from_arrays(columns, names=list(names))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError) as error:
        raise InputError(f"{source.path}: {_explain(str(error), source)}", public="unreadable input") from None


def _number(column: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    return column if column.type == pa.float64() else pc.cast(column, pa.float64(), safe=False)


def _time(column: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_string(column.type) or pa.types.is_temporal(column.type)):
        return _number(column)
    try:
        return pc.cast(column, pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pc.cast(pc.cast(pc.cast(column, pa.timestamp("us")), pa.int64()), pa.float64(), safe=False)


def _csv_batches(source: Source, names: list[str], number: str | None) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.csv

    compression = "gzip" if source.path.suffix.lower() == ".gz" else None
    with pa.input_stream(str(source.path), compression=compression, buffer_size=BLOCK_BYTES) as stream:
        # One thread: errors then carry row numbers, and no block is parsed ahead of its use.
        yield from pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(delimiter=source.delimiter),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names,
                column_types={name: pa.float64() if name == number else pa.string() for name in names},
                strings_can_be_null=False,
            ),
        )


def _parquet_batches(source: Source, names: list[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(source.path, buffer_size=BLOCK_BYTES, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=PARQUET_ROWS, columns=names, use_threads=False)


_CONVERSION = re.compile(r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to double: invalid value '(.*)'")
_SHAPE = re.compile(r"CSV parse error: (?:Row #(\d+): )?Expected (\d+) columns, got (\d+)")


def _explain(message: str, source: Source) -> str:
    """Arrow's message in the user's terms."""
    if match := _CONVERSION.search(message):
        names, _ = header(source.path)
        where = f"line {match[2]}, " if match[2] else ""
        return f"{where}column {names[int(match[1])]!r}: {match[3]!r} is not a number"
    if match := _SHAPE.search(message):
        where = f"line {match[1]}: " if match[1] else ""
        return f"{where}{match[3]} columns where the header has {match[2]}"
    return f"cannot be read ({message.splitlines()[0]})"
