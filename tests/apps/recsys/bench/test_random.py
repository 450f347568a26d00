"""Random tables are what they say, and a few random commands keep the promise."""

import csv
import gzip
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from apps.recsys.bench.random.commands import sessions
from apps.recsys.bench.random.tables import Table
from tests.common.bench.drawn import keep_the_promise


def test_a_table_is_what_its_description_says(tmp_path: Path) -> None:
    defects = ("blank ids", "extra column", "missing values", "quotes")
    table = Table(rows=500, values="float", times="zone", user_ids="word", format="csv.gz", defects=defects)
    with gzip.open(table.write(tmp_path), "rt", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 500 and list(rows[0]) == ["user", "item", "value", "time", "note"]
    assert any(row["user"] == "" for row in rows) and any(row["value"] == "" for row in rows)
    assert all(row["time"].endswith("Z") for row in rows)
    assert max(float(row["value"] or 0) for row in rows) > 4
    assert {row["user"] for row in rows} >= {"u00000", "u00039"}
    assert table.write(tmp_path).read_bytes()[10:] == table.write(tmp_path).read_bytes()[10:]


@pytest.mark.parametrize("strings", ["string", "large_string", "string_view", "dictionary"])
def test_missing_ids_are_null_in_columns(tmp_path: Path, strings: str) -> None:
    table = Table(rows=400, header="shop", format="parquet", strings=strings, defects=("missing ids",))
    assert table.options() == ["--user-col", "buyer", "--item-col", "sku"]
    written = pq.read_table(table.write(tmp_path))
    assert written.column_names == ["buyer", "sku"] and written["buyer"].null_count > 0


def test_random_commands_keep_the_promise() -> None:
    keep_the_promise("recsys", sessions())
