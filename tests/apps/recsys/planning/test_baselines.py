"""Reading is priced by what Arrow holds at a time: blocks of text, pages of Parquet, whole batches of Arrow files."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apps.recsys.data.headers import CODE_BYTES
from apps.recsys.data.readers import Columns, Source, open_source
from apps.recsys.planning.baselines import STAGE_LEAST_BYTES, reading_terms

MIB = 1 << 20


def _sources(folder: Path, rows: int) -> dict[str, Source]:
    table = pa.table({"user": [f"{n:064}" for n in range(rows)], "item": [n % 7 for n in range(rows)]})
    pq.write_table(table, folder / "a.parquet")
    with pa.ipc.new_file(folder / "one.arrow", table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_file(folder / "five.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=rows // 5)
    (folder / "a.csv").write_text("user,item\n1,2\n")
    return {path.name: open_source(path, Columns()) for path in folder.iterdir()}


@pytest.mark.parametrize("rows", [5000, 50_000])
def test_reading_is_priced_by_format(tmp_path: Path, rows: int) -> None:
    sources = _sources(tmp_path, rows)
    read = {name: reading_terms(rows, [source])[0].bytes for name, source in sources.items()}
    blocks = STAGE_LEAST_BYTES + 64 * rows
    assert read["a.csv"] == blocks
    # a dictionary and a page at a time, twice: not all of a long column
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    pages = [group.column(n).total_uncompressed_size for n in range(2)]
    assert read["a.parquet"] == blocks + 2 * sum(min(size, 2 * MIB) for size in pages)
    assert (max(pages) > 2 * MIB) == (rows == 50_000)
    whole = (tmp_path / "one.arrow").stat().st_size
    assert read["one.arrow"] == max(int(0.9 * whole), blocks)
    assert read["five.arrow"] == blocks  # a batch takes less than what reads it


def test_a_large_batch_of_an_arrow_file_is_read_whole(tmp_path: Path) -> None:
    source = _sources(tmp_path, 5000)["one.arrow"]
    larger = replace(source, unpacking_bytes=100 * MIB)
    assert reading_terms(10**9, [source])[0].bytes == 12 * MIB
    assert reading_terms(10**9, [source, larger])[0].bytes == 100 * MIB
    packed = Source(tmp_path / "a.csv", source.columns, unpacking_bytes=3 * MIB)
    assert [term.bytes for term in reading_terms(100, [packed])] == [STAGE_LEAST_BYTES + 6400, 3 * MIB]


def test_the_code_for_kinds_of_columns_is_priced_where_there_are_some(tmp_path: Path) -> None:
    plain = pa.table({"user": ["1", "2"], "item": ["a", "b"]})
    coded = plain.set_column(1, "item", plain["item"].dictionary_encode())
    large = plain.set_column(0, "user", plain["user"].cast(pa.large_string()))
    found = []
    for name, table in (("plain", plain), ("coded", coded), ("large", large)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        found.append(reading_terms(2, [open_source(tmp_path / f"{name}.parquet", Columns())])[1].bytes)
    assert found == [0, CODE_BYTES["dictionary"], CODE_BYTES["large_string"]]
