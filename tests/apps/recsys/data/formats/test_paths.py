"""Folders with Hive partitions, and patterns."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from apps.recsys.data import ingest, readers
from apps.recsys.data.formats.paths import expanded
from apps.recsys.data.id_table import IdTable
from apps.recsys.data.staging import Filters
from common.errors import BadInput
from tests.messages import refused


def partitioned(folder: Path) -> Path:
    """Two countries, each a folder with a file, and what is no data."""
    for country, users in (("de", [1, 2]), ("a%20b", [3, 4])):
        place = folder / f"country={country}"
        place.mkdir(parents=True)
        pq.write_table(pa.table({"user": users, "item": ["x", "y"]}), place / "part-0.parquet")
    (folder / "_SUCCESS").write_text("")
    hidden = folder / "_temporary"
    hidden.mkdir()
    (hidden / "half.parquet").write_bytes(b"PAR1")
    return folder


def test_a_folder_is_its_parquet_files(tmp_path: Path) -> None:
    folder = partitioned(tmp_path / "data")
    found = expanded([folder])
    assert [(path.parent.name, parts) for path, parts in found] == [
        ("country=a%20b", (("country", "a b"),)),
        ("country=de", (("country", "de"),)),
    ]
    inputs = ingest.open_inputs([folder], readers.Columns(user="country"), None, Filters(), "none", 0)
    out = tmp_path / "out"
    out.mkdir()
    facts = ingest.ingest(inputs, out)
    assert (facts.rows, facts.users, facts.interactions) == (4, 2, 4)
    users = IdTable(out / "users.parquet")
    assert [users.id(row) for row in range(2)] == ["a b", "de"]


def test_patterns(tmp_path: Path) -> None:
    partitioned(tmp_path / "data")
    assert len(expanded([tmp_path / "data" / "*" / "part-*.parquet"])) == 2
    assert len(expanded([tmp_path / "da*"])) == 2
    with refused(BadInput, "no*.csv", "pattern"):
        expanded([tmp_path / "no*.csv"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with refused(BadInput, empty, "Parquet"):
        expanded([empty])
    strange = tmp_path / "a[1].csv"
    strange.write_text("user,item\n1,2\n")
    assert expanded([strange, tmp_path / "absent.csv"]) == [(strange, ()), (tmp_path / "absent.csv", ())]
