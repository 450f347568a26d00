"""Write tables of lists, one after the other, as CSV, JSON lines or Parquet: the suffix of the file decides."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from apps.recsys.data import arrow_numpy

ROWS = 1 << 11
"""Rows of text made at a time."""


def write(tables: Iterable[Any], path: Path, suffix: str) -> None:
    """Write Arrow tables with the same columns into one file.

    Parameters
    ----------
    tables
        The tables.
    path
        The file.
    suffix
        ``".csv"`` has a line of names first; ``".jsonl"`` an object a row; any other is Parquet, a row group a table.
    """
    as_text: dict[str, Callable[[Iterable[Any], Path], None]] = {".csv": _csv, ".jsonl": _json_lines}
    as_text.get(suffix.lower(), _parquet)(tables, path)


def _parquet(tables: Iterable[Any], path: Path) -> None:
    import pyarrow.parquet as pq

    writer = None
    for table in tables:
        writer = writer or pq.ParquetWriter(arrow_numpy.native(path), table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _csv(tables: Iterable[Any], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        out = csv.writer(stream, lineterminator="\n")
        for number, table in enumerate(tables):
            if number == 0:
                out.writerow(table.column_names)
            for columns in _columns(table):
                out.writerows(zip(*columns.values(), strict=True))


def _json_lines(tables: Iterable[Any], path: Path) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for table in tables:
            for columns in _columns(table):
                rows = zip(*columns.values(), strict=True)
                lines = (json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows)
                stream.writelines(f"{line}\n" for line in lines)


def _columns(table: Any) -> Iterator[dict[str, list[Any]]]:
    """Some rows at a time as Python's values; numbers with nine digits, which tell all float32 apart."""
    for start in range(0, table.num_rows, ROWS):
        some = table.slice(start, ROWS).to_pydict()
        yield {
            name: [float(f"{value:.9g}") if isinstance(value, float) else value for value in values]
            for name, values in some.items()
        }
