"""Tables of interactions with ordinary defects, each written from its description."""

import csv
import gzip
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HEADERS = {
    "plain": ("user", "item", "value", "time"),
    "movielens": ("userId", "movieId", "rating", "timestamp"),
    "shop": ("buyer", "sku", "qty", "ordered_at"),
}
"""Column names, the last ones unknown to the reader."""
IDS = ("int", "large", "word", "long", "unicode", "float")
VALUES = ("none", "int", "float", "negative")
TIMES = ("none", "seconds", "iso", "zone")
FORMATS = ("csv", "tsv", "csv.gz", "parquet", "arrow", "feather")
STRINGS = ("string", "large_string", "string_view", "dictionary")
DEFECTS = ("blank ids", "missing ids", "missing values", "repeated rows", "quotes", "shuffled columns", "extra column")
"""Defects that users' files have; each may be absent."""
SHARE = 0.02
"""Share of the rows that a defect concerns."""


@dataclass(frozen=True)
class Table:
    """One table, described."""

    rows: int = 300
    users: int = 40
    items: int = 30
    header: str = "plain"
    user_ids: str = "int"
    item_ids: str = "int"
    values: str = "none"
    times: str = "none"
    format: str = "csv"
    strings: str = "string"
    defects: tuple[str, ...] = ()
    seed: int = 0

    @property
    def names(self) -> tuple[str, str, str, str]:
        """Names of the columns for user, item, value and time."""
        return HEADERS[self.header]

    def options(self) -> list[str]:
        """Return the options that name the columns, where the reader does not know the names."""
        if self.header != "shop":
            return []
        user, item, value, time = self.names
        words = ["--user-col", user, "--item-col", item]
        words += ["--value-col", value] if self.values != "none" else []
        return words + (["--time-col", time] if self.times != "none" else [])

    def user(self, number: int) -> str:
        """Return the id of a user as text."""
        return _id(self.user_ids, number)

    def item(self, number: int) -> str:
        """Return the id of an item as text."""
        return _id(self.item_ids, number)

    @cached_property
    def _numbers(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Users and items by row; both are popular by a power law, so that some histories are long."""
        random = np.random.default_rng(self.seed)
        users = (self.users * random.random(self.rows) ** 2).astype(np.int64)
        items = (self.items * random.random(self.rows) ** 3).astype(np.int64)
        return users, items

    def write(self, folder: Path) -> Path:
        """Write the table below ``folder`` and return its path."""
        columns = self._columns()
        path = folder / f"interactions.{self.format}"
        if self.format in ("csv", "tsv", "csv.gz"):
            content = self._text(columns, "\t" if self.format == "tsv" else ",").encode()
            path.write_bytes(gzip.compress(content) if self.format.endswith("gz") else content)
        else:
            self._write_arrow(columns, path)
        return path

    def _columns(self) -> dict[str, list[Any]]:
        random = np.random.default_rng([self.seed, 1])
        users, items = self._numbers
        ids = {
            self.names[0]: [self.user(number) for number in users.tolist()],
            self.names[1]: [self.item(number) for number in items.tolist()],
        }
        columns: dict[str, list[Any]] = dict(ids)
        if self.values != "none":
            draws = {"int": random.integers(1, 6, self.rows), "float": random.random(self.rows) * 5}
            draws["negative"] = random.integers(-2, 6, self.rows)
            columns[self.names[2]] = draws[self.values].tolist()
        if self.times != "none":
            seconds = random.integers(1_500_000_000, 1_700_000_000, self.rows)
            moments = [str(moment) for moment in seconds.astype("datetime64[s]")]
            ending = "Z" if self.times == "zone" else ""
            columns[self.names[3]] = seconds.tolist() if self.times == "seconds" else [m + ending for m in moments]
        if "extra column" in self.defects:
            columns["note"] = ['say "hi", then\tgo' if index % 3 else "" for index in range(self.rows)]
        for row in random.integers(self.rows, size=max(1, int(SHARE * self.rows))).tolist():
            for name in list(ids):
                if "blank ids" in self.defects:
                    columns[name][row] = ""
                if "missing ids" in self.defects and row % 2:
                    columns[name][row] = None
            if "missing values" in self.defects and self.values != "none":
                columns[self.names[2]][row] = None
            if "repeated rows" in self.defects and row:
                for values in columns.values():
                    values[row] = values[row - 1]
        if "shuffled columns" in self.defects:
            columns = dict(reversed(columns.items()))
        return columns

    def _text(self, columns: dict[str, list[Any]], delimiter: str) -> str:
        out = io.StringIO()
        quoting: Any = csv.QUOTE_ALL if "quotes" in self.defects else csv.QUOTE_MINIMAL
        writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return out.getvalue()

    def _write_arrow(self, columns: dict[str, list[Any]], path: Path) -> None:
        import pyarrow as pa
        from pyarrow import feather, parquet

        table = pa.table({name: self._array(values) for name, values in columns.items()})
        if self.format == "parquet":
            if self.strings == "string_view":  # Parquet stores plain strings
                table = pa.table({name: column.cast(pa.string()) if pa.types.is_string_view(column.type) else column
                                  for name, column in zip(table.column_names, table.columns, strict=True)})  # fmt: skip
            parquet.write_table(table, path)
        elif self.format == "feather":
            feather.write_feather(table, str(path), compression="lz4")
        else:
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)

    def _array(self, values: list[Any]) -> Any:
        import pyarrow as pa

        if not any(isinstance(value, str) for value in values):
            return pa.array(values)
        kinds = {"string": pa.string(), "large_string": pa.large_string(), "string_view": pa.string_view()}
        if self.strings == "dictionary":
            return pa.array(values, pa.string()).dictionary_encode()
        return pa.array(values, kinds[self.strings])


def _id(kind: str, number: int) -> str:
    forms = {
        "int": str(number + 1),
        "large": str(7_600_000_000_000 + 13 * number),
        "word": f"u{number:05d}",
        "long": f"{number:064x}",
        "unicode": f"Žöe {number} ☃",
        "float": f"{number + 1}.0",
    }
    return forms[kind]
