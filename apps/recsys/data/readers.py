"""Read interaction files as streams of Arrow batches: text, JSON lines, Parquet and Arrow files.

Columns are found by name. Three formats without a header are read too: ``user::item::value::time`` (MovieLens), the
same four columns separated by tabs (MovieLens 100K, NCF), and lists, ``user item item ...`` (LightGCN). Text may be
compressed (gzip, bzip2, Zstandard), in UTF-8 or UTF-16.

Arrow parses one block of text at a time. Ids are read as text, so any type of id works and ``007`` stays ``007``.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from apps.recsys.data.arrow_numpy import native
from apps.recsys.data.columns import Columns as Columns
from apps.recsys.data.columns import Layout as Layout
from apps.recsys.data.columns import by_place, choose, choose_titles
from apps.recsys.data.formats import kinds
from apps.recsys.data.formats.lines import json_batches, list_batches
from apps.recsys.data.formats.unpacked import is_plain, open_bytes, packing
from apps.recsys.data.headers import JSON, LISTS, header, is_arrow
from common.errors import BadInput

BLOCK_BYTES = 1 << 19
"""Bytes of text parsed at a time."""
PARQUET_ROWS = 1 << 13
"""Rows of Parquet or Arrow converted at a time (a batch of ids of 64 letters: 1.2 MiB). More is not faster."""
_MOVIES = ("item", "title", "genres")
"""Columns of MovieLens's table of items, which has no header."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input file whose header has been checked."""

    path: Path
    columns: Columns
    delimiter: str = ","
    names: tuple[str, ...] = ()
    """Names of all columns."""
    headed: bool = True
    """True if the names are the file's first line."""
    decimal: str = "."
    """Decimal mark in text."""
    placed: tuple[str, ...] = ()
    """Those of ``user`` and ``item`` that were taken for their place."""
    partitions: tuple[tuple[str, str], ...] = field(default=())
    """Names and values of columns that the folders' names hold."""
    unpacking_bytes: int = 0
    """Memory that reading it takes besides the parser's, at most."""

    parquet: bool = False
    """True for Parquet and Arrow files; everything else is text."""
    code_bytes: int = 0
    """Memory of Arrow's code for the kinds of its columns."""

    @property
    def lists(self) -> bool:
        """True if each line is a user and all of its items."""
        return self.delimiter == LISTS

    @property
    def needs_arrow(self) -> bool:
        """True if the file cannot be read without Arrow."""
        return self.parquet or packing(self.path) == ".zst"

    def understood(self) -> str:
        """Name the columns that were taken, in one line."""
        if self.lists:
            return "lists, each line a user and its items"
        columns = self.columns
        line = f"user={columns.user} item={columns.item} value={columns.value or 'none (every row counts 1)'}"
        line += f" time={columns.time}" if columns.time else ""
        if self.placed:
            options = " and ".join(f"--{what}-col" for what in self.placed)
            line += f"; {' and '.join(self.placed)} by position ({options} choose others)"
        return line


def understood(sources: Sequence[Source]) -> list[str]:
    """Name the columns that were taken: a line for all files, or one for each reading, with its first file's name."""
    readings: dict[str, list[Source]] = {}
    for source in sources:
        readings.setdefault(source.understood(), []).append(source)
    if len(readings) == 1:
        return [f"columns: {reading}" for reading in readings]
    return [
        f"columns of {files[0].path.name}{f' and {len(files) - 1} more' if files[1:] else ''}: {reading}"
        for reading, files in readings.items()
    ]


def open_source(
    path: Path,
    wanted: Columns,
    layout: Layout = Layout(),
    *,
    partitions: tuple[tuple[str, str], ...] = (),
    model: Columns = Columns(),
) -> Source:
    """Check that a file exists and has the columns. Only the header is read.

    Parameters
    ----------
    path
        The file.
    wanted
        Names of columns from the user. Where one is ``None``, common names are looked up; user and item are the first
        columns otherwise.
    layout
        Layout of the file, as far as the user states it.
    partitions
        Further columns with one value each.
    model
        Columns that a model was trained on: they come before common names if the file has both user and item.

    Raises
    ------
    BadInput
        The file is missing or empty, its header is unreadable, or it has no such column (the message lists all).
    """
    names, delimiter, headed, unpacking_bytes, columnar, code_bytes = header(path, layout)
    every = [*names, *(name for name, _ in partitions if name not in names)]
    if model.user in every and model.item in every and wanted.user is None and wanted.item is None:
        value, time = (name if name in every else None for name in (model.value, model.time))
        wanted = Columns(model.user, model.item, wanted.value or value, wanted.time or time)
    columns = choose(every, wanted, str(path), delimiter)
    return Source(
        path,
        columns,
        delimiter,
        tuple(names),
        headed,
        layout.decimal,
        by_place(every, wanted, columns) if headed else (),
        tuple(pair for pair in partitions if pair[0] not in names),
        unpacking_bytes,
        columnar,
        code_bytes,
    )


def open_titles(path: Path) -> tuple[Source, str]:
    """Check a table of items and titles. One without a header is MovieLens's: ``id::title::genres``.

    Returns
    -------
    source, title
        The source, with ``columns.item`` set, and the name of the column of titles.

    Raises
    ------
    BadInput
        As ``header``, or there is no column for the titles.
    """
    names, delimiter, headed, unpacking_bytes, columnar, code_bytes = header(path)
    if delimiter == "::" and not headed:
        names = [*_MOVIES, *names[len(_MOVIES) :]][: len(names)]
    item, title = choose_titles(names, str(path))
    source = Source(path, Columns(item=item), delimiter, tuple(names), headed, parquet=columnar)
    return replace(source, unpacking_bytes=unpacking_bytes, code_bytes=code_bytes), title


def batches(
    source: Source, names: Sequence[str], *, number: str | None = None, time: str | None = None, raw: bool = False
) -> Iterator[Any]:
    """Read a file as Arrow record batches.

    Parameters
    ----------
    source
        The file.
    names
        Columns to read. Numbers, times and other text are converted (``formats.kinds``); ids are numbers or text.
    number
        The column among them that holds numbers, converted to float64.
    time
        The column among them that holds times: numbers, or dates, which become seconds since 1970; float64.
    raw
        True to leave columns as they are: text, or a file's own types. Arrays in JSON lines become text with ``|``.

    Raises
    ------
    BadInput
        A row has another length, a value is not a number (with row and column), or the file is damaged.
    """
    import pyarrow as pa

    fixed = dict(source.partitions)
    read = _batches(source, [name for name in names if name not in fixed], number, joins=raw)
    try:
        for batch in read:
            columns = []
            for name in names:
                column = _constant(fixed[name], batch.num_rows) if name in fixed else batch.column(name)
                try:
                    columns.append(column if raw else _converted(column, name, source, number, time))
                except kinds.Unreadable as error:
                    raise BadInput(f"{source.path}: column {name!r}: {error}", public="unreadable input") from None
            yield pa.RecordBatch.from_arrays(columns, names=list(names))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, OSError, EOFError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{source.path}: {_explain(str(error), source)}", public="unreadable input") from None


def _converted(column: Any, name: str, source: Source, number: str | None, time: str | None) -> Any:
    if name == number:
        return kinds.numbers(column, source.decimal)
    columns_of_text = not (source.parquet or source.delimiter == JSON)
    return kinds.times(column) if name == time else kinds.ids(column, trim=columns_of_text)


def _constant(text: str, rows: int) -> Any:
    from apps.recsys.data import arrow_numpy

    return arrow_numpy.text([text] * rows)


def _batches(source: Source, names: list[str], number: str | None, *, joins: bool) -> Iterator[Any]:
    if source.parquet:
        return _arrow_batches(source, names) if is_arrow(source.path) else _parquet_batches(source, names)
    if source.delimiter == JSON:
        return json_batches(source.path, names, joins=joins)
    return list_batches(source.path) if source.lists else _csv_batches(source, names, number)


def _csv_batches(source: Source, names: list[str], number: str | None) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.csv

    opened: Any
    if source.delimiter == "::":
        opened = _Tabbed(source.path)
    elif is_plain(source.path):
        opened = pa.input_stream(native(source.path), buffer_size=BLOCK_BYTES)
    else:
        opened = open_bytes(source.path)
    delimiter = "\t" if source.delimiter == "::" else source.delimiter
    with opened as stream:
        # One thread, so that errors have row numbers and no block is parsed in advance.
        yield from pyarrow.csv.open_csv(
            stream,
            # The names are those of ``header``, which has taken spaces away.
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=BLOCK_BYTES,
                column_names=list(source.names),
                skip_rows=int(source.headed),
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names,
                column_types={name: pa.float64() if name == number else pa.string() for name in names},
                strings_can_be_null=False,
                decimal_point=source.decimal,
            ),
        )


class _Tabbed:
    """A file object in which every ``::`` is a tab: the parser takes delimiters of one character only."""

    closed = False

    def __init__(self, path: Path) -> None:
        self._stream = open_bytes(path)
        self._rest = b""

    def read(self, size: int = BLOCK_BYTES) -> bytes:
        """Read about ``size`` bytes; none at the end of the file."""
        more = self._stream.read(size if size > 0 else BLOCK_BYTES)
        block = self._rest + more
        # If the block ends with an odd number of colons, the last one may be half of a delimiter.
        odd = (len(block) - len(block.rstrip(b":"))) % 2
        self._rest = b":" if more and odd else b""
        return block[: len(block) - len(self._rest)].replace(b"::", b"\t")

    def readable(self) -> bool:
        """True: readers of Arrow ask for it."""
        return True

    def close(self) -> None:
        """Close the file."""
        self.closed = True
        self._stream.close()

    def __enter__(self) -> "_Tabbed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _arrow_batches(source: Source, names: list[str]) -> Iterator[Any]:
    import pyarrow as pa

    with pa.OSFile(native(source.path)) as stream:
        file = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(use_threads=False))
        for number in range(file.num_record_batches):
            batch = file.get_batch(number).select(names)
            for start in range(0, batch.num_rows, PARQUET_ROWS):
                yield batch.slice(start, PARQUET_ROWS)


def _parquet_batches(source: Source, names: list[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(native(source.path), buffer_size=BLOCK_BYTES, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=PARQUET_ROWS, columns=names, use_threads=False)


_CONVERSION = re.compile(r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to double: invalid value '(.*)'")
_SHAPE = re.compile(r"CSV parse error: (?:Row #(\d+): )?Expected (\d+) columns, got (\d+)")


def _explain(message: str, source: Source) -> str:
    """Arrow's error message in the user's terms."""
    if match := _CONVERSION.search(message):
        row = f"line {match[2]}, " if match[2] else ""
        comma = "; --decimal , reads decimal commas" if re.fullmatch(r"-?[0-9]+,[0-9]+", match[3]) else ""
        return f"{row}column {source.names[int(match[1])]!r}: {match[3]!r} is not a number{comma}"
    if match := _SHAPE.search(message):
        row = f"line {match[1]}: " if match[1] else ""
        return f"{row}{match[3]} columns where the header has {match[2]}"
    if "straddl" in message:
        return f"a row of more than {BLOCK_BYTES:,} bytes"
    return f"cannot be read ({message.splitlines()[0]})"
