"""Read the first lines of an input file: its columns' names, what stands between them, and what format it has."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from apps.recsys.data.arrow_numpy import native
from apps.recsys.data.columns import Layout, is_number
from apps.recsys.data.formats.lines import json_object
from apps.recsys.data.formats.unpacked import FirstText, first_text, packing
from common.errors import BadInput
from common.memory.process import fork

HEADLESS = ("user", "item", "value", "time")
"""Columns of a file without a header."""
LISTS, JSON = "list", "json"
"""Delimiters of a file of lists, and of JSON lines, by name."""
_NAMED = {"tab": "\t", "\\t": "\t", "space": " "}
"""Delimiters that have a name."""
PAGES_BYTES, DECODED = 2 << 20, 2
"""Most bytes of a column of Parquet that are unpacked at a time, a page and a dictionary; and copies of them (60,000
rows of ids of 64 letters take 4 to 9 MiB more than ids of 5)."""
ARROW_SHARE = 0.9
"""Share of a batch of an Arrow file that reading adds (44 MiB for one of 46 MiB, 5 for one of 12): it ends before the
libraries are loaded that write."""
SAMPLE = 1 << 16
"""Characters of a text that its layout is found from."""


def is_parquet(path: Path) -> bool:
    """True for the suffixes of Parquet files."""
    return path.suffix.lower() in (".parquet", ".pq")


def is_arrow(path: Path) -> bool:
    """True for the suffixes of Arrow files."""
    return path.suffix.lower() in (".arrow", ".feather", ".ipc")


CODE_BYTES = {"dictionary": 4 << 20, "large_string": 1 << 20, "large_binary": 1 << 20}
"""Memory of Arrow's code for kinds of columns that no other file needs (measured: dictionaries 3.0 to 3.5 MiB, large
strings, which Polars writes, 0.6 to 0.9)."""


class Header(NamedTuple):
    """The columns of a file, and how it is read, by its first lines or its schema."""

    names: Sequence[str]
    """Names of all columns."""
    delimiter: str
    """Delimiter of the columns, ``LISTS`` or ``JSON``."""
    headed: bool
    """True if the names are in the file."""
    unpacking_bytes: int
    """Memory that reading the file takes besides the parser's, at most."""
    columnar: bool
    """True for Parquet and Arrow files; everything else is text."""
    code_bytes: int = 0
    """Memory of Arrow's code for the kinds of their columns (``CODE_BYTES``)."""


def header(path: Path, layout: Layout = Layout()) -> Header:
    """Read the header of a file.

    Raises
    ------
    BadInput
        The file is missing, empty or unreadable, its layout has several readings, or two columns have the same name.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file", public="no such file")
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: the file is empty", public="empty file")
    arrow = is_parquet(path) or is_arrow(path)
    if (arrow or packing(path) == ".zst") and "pyarrow" not in sys.modules:
        # In a child, so that a process that only plans and fits does not keep Arrow in memory.
        found = Header(*fork.run(lambda: {"header": _header(path, layout)})["header"])
    else:
        found = _header(path, layout)
    names = found.names
    if len(set(names)) < len(names):
        raise BadInput(f"{path}: two columns have the same name: {', '.join(names)}", public="repeated column")
    return found


def _header(path: Path, layout: Layout) -> Header:
    if is_parquet(path) or is_arrow(path):
        schema, decoding = _schema(path)
        code = max((CODE_BYTES.get(str(kind).partition("<")[0], 0) for kind in schema.types), default=0)
        return Header(list(schema.names), ",", True, decoding, True, code)
    try:
        first = first_text(path, SAMPLE)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a readable text file ({error})", public="unreadable file") from None
    return Header(*_text_header(path, layout, first), first.unpacking_bytes, False)


def _text_header(path: Path, layout: Layout, first: FirstText) -> tuple[list[str], str, bool]:
    lines = first.text.splitlines()
    if not lines or not lines[0].strip():
        raise BadInput(f"{path}: the file is empty", public="empty file")
    if first.suffix in (".jsonl", ".ndjson", ".json"):
        return _json_names(path, lines[0]), JSON, True
    if lines[0].lstrip().startswith(("{", "[")):
        raise BadInput(
            f"{path}: this is JSON; one object a line is read if the file's name ends with .jsonl", public="JSON"
        )
    whole = lines[: max(1, len(lines) - 1)] if len(first.text) == SAMPLE else lines
    if layout.delimiter == LISTS:
        return ["user", "item"], LISTS, False
    if layout.headed and layout.delimiter is None and (found := _layout_without_header(path, whole)):
        return *found, False
    delimiter = _NAMED.get(layout.delimiter or "", layout.delimiter) or _delimiter(lines[0])
    mark, line = ("\t", lines[0].replace("::", "\t")) if delimiter == "::" else (delimiter, lines[0])
    cells = next(csv.reader([line], delimiter=mark))
    names = [name.strip() for name in cells]
    if layout.headed:
        return names, delimiter, True
    return [*HEADLESS, *(f"column{n}" for n in range(5, len(names) + 1))][: len(names)], delimiter, False


def _delimiter(line: str) -> str:
    return "::" if "::" in line and not any(mark in line for mark in ",\t;|") else max(",\t;|", key=line.count)


def _json_names(path: Path, line: str) -> list[str]:
    if line.lstrip().startswith("["):
        raise BadInput(f"{path}: a JSON array; write one object a line", public="JSON")
    return list(json_object(path, 1, line))


def _layout_without_header(path: Path, lines: Sequence[str]) -> tuple[list[str], str] | None:
    """Column names and delimiter, if the first line is of a format without a header."""
    line = lines[0]
    for delimiter in ("::", "\t"):
        cells = line.split(delimiter)
        if 2 <= len(cells) <= len(HEADLESS) and (
            all(map(is_number, cells)) or (delimiter == "::" and any(map(is_number, cells)))
        ):
            return list(HEADLESS[: len(cells)]), delimiter
    if any(mark in line for mark in ",\t;|") or len(cells := line.split()) < 2 or not all(map(is_number, cells)):
        return None
    counts = {len(one.split()) for one in lines if one.strip()}
    if len(lines) > 1 and counts in ({3}, {4}):
        raise BadInput(
            f"{path}: every line has {counts.pop()} numbers: say --delimiter space if they are columns (user, item,"
            " value, time), or --delimiter list if each line is a user and its items",
            public="ambiguous layout",
        )
    return ["user", "item"], LISTS


def _schema(path: Path) -> tuple[Any, int]:
    """Schema of a Parquet or Arrow file, and the memory that decoding it takes (``Header.unpacking_bytes``)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = "Parquet" if is_parquet(path) else "Arrow"
    try:
        if kind == "Parquet":
            metadata = pq.read_metadata(native(path))
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            sizes = [
                sum(min(group.column(n).total_uncompressed_size, PAGES_BYTES) for n in range(group.num_columns))
                for group in groups
            ]
            return metadata.schema.to_arrow_schema(), DECODED * max(sizes, default=0)
        with pa.OSFile(native(path)) as stream:
            file = pa.ipc.open_file(stream)
            # A batch is read whole; writers make all of one size but the last.
            largest = path.stat().st_size // max(1, file.num_record_batches - 1)
            return file.schema, int(ARROW_SHARE * largest)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path}: not a file in {kind}'s format ({error})", public="unreadable file") from None
