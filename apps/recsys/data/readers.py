"""Read interaction files as streams of Arrow batches: CSV (plain or gzip), Parquet and Arrow files.

Columns are found by name. Three formats without a header are read too: ``user::item::value::time`` (MovieLens), the
same four columns separated by tabs (MovieLens 100K, NCF), and lists, ``user item item ...`` (LightGCN).

Arrow parses one block of text at a time. Ids are read as text, so any type of id works and ``007`` stays ``007``.
"""

import csv
import gzip
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.recsys.data.columns import Columns as Columns
from apps.recsys.data.columns import choose, choose_titles, is_number
from apps.recsys.data.gzip_limit import Unpacked
from common.errors import BadInput
from common.memory.process import fork

BLOCK_BYTES = 1 << 19
"""Bytes of text parsed at a time."""
PARQUET_ROWS = 1 << 15
"""Parquet rows decoded at a time."""

HEADLESS = ("user", "item", "value", "time")
"""Columns of a file without a header."""
LIST_LINES = 1 << 10
"""Lines of a file of lists read at a time."""
LONGEST_LIST = 8 << 20
"""Most characters of a line in a file of lists; a longer line is refused."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input file whose header has been checked."""

    path: Path
    columns: Columns
    delimiter: str = ","
    names: tuple[str, ...] | None = None
    """Names of the columns if the file has no header."""

    @property
    def parquet(self) -> bool:
        """True for Parquet and Arrow files; everything else is text."""
        return _is_parquet(self.path) or _is_arrow(self.path)

    @property
    def lists(self) -> bool:
        """True if each line is a user and all of its items."""
        return self.delimiter == " "


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".pq")


def _is_arrow(path: Path) -> bool:
    return path.suffix.lower() in (".arrow", ".feather", ".ipc")


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def open_source(path: Path, wanted: Columns) -> Source:
    """Check that a file exists and has the columns. Only the header is read.

    Parameters
    ----------
    path
        The file.
    wanted
        Names of columns from the user. Where one is ``None``, common names are looked up; user and item are the first
        columns otherwise.

    Raises
    ------
    BadInput
        The file is missing or empty, its header is unreadable, or it has no such column (the message lists all).
    """
    names, delimiter, headed = header(path)
    return Source(path, choose(names, wanted, str(path), delimiter), delimiter, None if headed else tuple(names))


def open_titles(path: Path) -> tuple[Source, str]:
    """Check a table of items and titles.

    Returns
    -------
    source, title
        The source, with ``columns.item`` set, and the name of the column of titles.

    Raises
    ------
    BadInput
        As ``header``, or there is no column for the titles.
    """
    names, delimiter, headed = header(path)
    item, title = choose_titles(names, str(path))
    return Source(path, Columns(item=item), delimiter, None if headed else tuple(names)), title


def header(path: Path) -> tuple[list[str], str, bool]:
    """Read the header of a file.

    Returns
    -------
    names, delimiter, headed
        Column names; delimiter of the columns; True if the names are in the file.

    Raises
    ------
    BadInput
        The file is missing, empty or unreadable, or two columns have the same name.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file", public="no such file")
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: the file is empty", public="empty file")
    if _is_parquet(path) or _is_arrow(path):
        # In a child, so that a process that only plans and fits does not keep Arrow in memory.
        names = _schema(path) if "pyarrow" in sys.modules else fork.run(lambda: {"names": _schema(path)})["names"]
        return names, ",", True
    try:
        with open_text(path) as stream:
            line = stream.readline(1 << 16)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a readable CSV file ({error})", public="unreadable file") from None
    if not line.strip():
        raise BadInput(f"{path}: the file is empty", public="empty file")
    if layout := _layout_without_header(line):
        return *layout, False
    delimiter = max(",\t;|", key=line.count)
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
    if len(set(names)) < len(names):
        raise BadInput(f"{path}: two columns have the same name: {', '.join(names)}", public="repeated column")
    return names, delimiter, True


def _layout_without_header(line: str) -> tuple[list[str], str] | None:
    """Column names and delimiter, if the first line is of a format without a header."""
    for delimiter in ("::", "\t"):
        cells = line.split(delimiter)
        if 2 <= len(cells) <= len(HEADLESS) and (delimiter == "::" or all(is_number(cell) for cell in cells)):
            return list(HEADLESS[: len(cells)]), delimiter
    if not any(mark in line for mark in ",\t;|") and len(cells := line.split()) > 1 and all(map(is_number, cells)):
        return ["user", "item"], " "
    return None


def _schema(path: Path) -> list[str]:
    """Column names of a Parquet or Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = "Parquet" if _is_parquet(path) else "Arrow"
    try:
        if kind == "Parquet":
            return list(pq.read_schema(path).names)
        with pa.OSFile(str(path)) as stream:
            return list(pa.ipc.open_file(stream).schema.names)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path}: not a file in {kind}'s format ({error})", public="unreadable file") from None


def open_text(path: Path) -> Any:
    """Open a plain or gzip file as a stream of text, without its byte order mark."""
    if _is_gzip(path):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open("rt", encoding="utf-8-sig", newline="")


def batches(
    source: Source, names: Sequence[str], *, number: str | None = None, time: str | None = None
) -> Iterator[Any]:
    """Read a file as Arrow record batches.

    Parameters
    ----------
    source
        The file.
    names
        Columns to read. Ids keep their type.
    number
        The column among them that holds numbers, converted to float64.
    time
        The column among them that holds times: numbers, or dates as ISO 8601, which become microseconds; float64.

    Raises
    ------
    BadInput
        A row has another length, a value is not a number (with row and column), or the file is damaged.
    """
    import pyarrow as pa

    read = _batches(source, list(names), number)
    try:
        for batch in read:
            convert = {number: _number, time: _time}
            columns = [convert.get(name, lambda column: column)(batch.column(name)) for name in names]
            yield pa.RecordBatch.from_arrays(columns, names=list(names))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError) as error:
        raise BadInput(f"{source.path}: {_explain(str(error), source)}", public="unreadable input") from None


def _batches(source: Source, names: list[str], number: str | None) -> Iterator[Any]:
    if source.parquet:
        return _arrow_batches(source, names) if _is_arrow(source.path) else _parquet_batches(source, names)
    return _list_batches(source) if source.lists else _csv_batches(source, names, number)


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

    opened: Any
    if source.delimiter == "::":
        opened = _Tabbed(source.path, gzipped=_is_gzip(source.path))
    elif _is_gzip(source.path):
        opened = Unpacked(source.path, gzipped=True)
    else:
        opened = pa.input_stream(str(source.path), buffer_size=BLOCK_BYTES)
    delimiter = "\t" if source.delimiter == "::" else source.delimiter
    with opened as stream:
        # One thread, so that errors have row numbers and no block is parsed in advance.
        yield from pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, block_size=BLOCK_BYTES, column_names=list(source.names) if source.names else None
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names,
                column_types={name: pa.float64() if name == number else pa.string() for name in names},
                strings_can_be_null=False,
            ),
        )


class _Tabbed(Unpacked):
    """A file object in which every ``::`` is a tab: the parser takes delimiters of one character only."""

    _rest = b""

    def read(self, size: int = BLOCK_BYTES) -> bytes:
        """Read about ``size`` bytes; none at the end of the file."""
        more = super().read(size if size > 0 else BLOCK_BYTES)
        block = self._rest + more
        # If the block ends with an odd number of colons, the last one may be half of a delimiter.
        odd = (len(block) - len(block.rstrip(b":"))) % 2
        self._rest = b":" if more and odd else b""
        return block[: len(block) - len(self._rest)].replace(b"::", b"\t")


def _list_batches(source: Source) -> Iterator[Any]:
    """Rows of a file of lists; a user without items has no row."""
    import pyarrow as pa

    with open_text(source.path) as stream:
        number = 0
        while lines := [line for _ in range(LIST_LINES) if (line := stream.readline(LONGEST_LIST))]:
            users, items = pa.lib.StringBuilder(), pa.lib.StringBuilder()
            for line in lines:
                number += 1
                if len(line) == LONGEST_LIST:
                    raise BadInput(f"{source.path}: line {number} is not a list of ids", public="unreadable input")
                user, *rest = line.split() or [""]
                for item in rest:
                    users.append(user)
                    items.append(item)
            columns = {"user": users.finish(), "item": items.finish()}
            yield pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _arrow_batches(source: Source, names: list[str]) -> Iterator[Any]:
    import pyarrow as pa

    with pa.OSFile(str(source.path)) as stream:
        file = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(use_threads=False))
        for number in range(file.num_record_batches):
            batch = file.get_batch(number).select(names)
            for start in range(0, batch.num_rows, PARQUET_ROWS):
                yield batch.slice(start, PARQUET_ROWS)


def _parquet_batches(source: Source, names: list[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(source.path, buffer_size=BLOCK_BYTES, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=PARQUET_ROWS, columns=names, use_threads=False)


_CONVERSION = re.compile(r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to double: invalid value '(.*)'")
_SCALAR = re.compile(r"Failed to parse string: '(.*)' as a scalar of type (double|timestamp)")
_SHAPE = re.compile(r"CSV parse error: (?:Row #(\d+): )?Expected (\d+) columns, got (\d+)")


def _explain(message: str, source: Source) -> str:
    """Arrow's error message in the user's terms."""
    if match := _CONVERSION.search(message):
        names, *_ = header(source.path)
        row = f"line {match[2]}, " if match[2] else ""
        return f"{row}column {names[int(match[1])]!r}: {match[3]!r} is not a number"
    if match := _SHAPE.search(message):
        row = f"line {match[1]}: " if match[1] else ""
        return f"{row}{match[3]} columns where the header has {match[2]}"
    if match := _SCALAR.search(message):
        if match[2] == "double":
            return f"column {source.columns.value!r}: {match[1]!r} is not a number"
        return f"column {source.columns.time!r}: {match[1]!r} is neither a number nor a date as ISO 8601 writes it"
    if "straddl" in message:
        return f"a row of more than {BLOCK_BYTES:,} bytes"
    return f"cannot be read ({message.splitlines()[0]})"
