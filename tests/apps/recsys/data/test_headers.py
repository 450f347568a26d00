"""What is understood of the first lines of a file: read, or refused with the option that decides."""

from pathlib import Path

import pytest

from apps.recsys.data import ingest, readers
from apps.recsys.data.id_table import IdTable
from apps.recsys.data.readers import Columns, Layout
from apps.recsys.data.staging import Filters
from common.errors import BadInput
from tests.messages import refused, says

WANTED = (3, 3, 4)
"""Users, items and interactions of every file below."""


def read(tmp_path: Path, path: Path, columns: Columns, layout: Layout) -> tuple[int, int, int]:
    inputs = ingest.open_inputs([path], columns, None, Filters(), "none", 0, layout)
    out = tmp_path / "out"
    out.mkdir()
    facts = ingest.ingest(inputs, out)
    items = IdTable(out / "items.parquet")
    assert sorted(str(items.id(row)) for row in range(len(items))) == ["x", "y", "z"]
    if not inputs.sources[0].needs_arrow:
        counted = ingest.count(inputs)
        assert counted.users >= facts.users and counted.interactions >= facts.interactions
    return facts.users, facts.items, facts.interactions


@pytest.mark.parametrize(
    ("name", "text", "columns", "layout"),
    [
        ("a.csv", "user, item, rating\n7, x, 1\n7, y, 2.5\n8, x, 3\n9, z, 1\n", Columns(), Layout()),
        ("a.csv", "user ,item ,rating \n7 ,x ,1\n7,y,2\n8,x,3 \n9,z,1\n", Columns(), Layout()),
        ("a.csv", "u7,x,1\nu7,y,2\nu8,x,3\nu9,z,1\n", Columns(), Layout(headed=False)),
        ("a.tsv", "7\tx\t1\n7\ty\t2\n8\tx\t3\n9\tz\t1\n", Columns(), Layout(headed=False)),
        ("a.txt", "7 x 1\n7 y 2\n8 x 3\n9 z 1\n", Columns(), Layout("space", headed=False)),
        ("a.txt", "7::x::1\n7::y::2\n8::x::3\n9::z::1\n", Columns(), Layout()),
        ("a.txt", "7 x y\n8 x\n9 z\n", Columns(), Layout("list")),
        ("a.csv", "user;item;value\n7;x;1,5\n7;y;2\n8;x;3\n9;z;1\n", Columns(), Layout(decimal=",")),
        ("a.csv", "user#item\n7#x\n7#y\n8#x\n9#z\n", Columns(), Layout("#")),
        ("a.csv", 'n,user,item\n1,7,"x"\n2,7,y\n3,8,x\n4,9,z\n', Columns(), Layout()),
        ("a.jsonl", '{"user": 7, "item": "x"}\n{"item": "y", "user": 7}\n\n{"user": 8.0, "item": "x"}\n'
         '{"user": "9", "item": "z", "more": [1]}\n{"user": null, "item": "x"}\n', Columns(), Layout()),
    ],
)  # fmt: skip
def test_layouts_that_are_read(tmp_path: Path, name: str, text: str, columns: Columns, layout: Layout) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert read(tmp_path, path, columns, layout) == WANTED


@pytest.mark.parametrize(
    ("name", "text", "facts"),
    [
        ("a.csv", '{"user": 1, "item": 2}\n{"user": 1, "item": 3}\n', ("JSON", ".jsonl")),
        ("a.csv", '[{"user": 1, "item": 2},\n', ("JSON", ".jsonl")),
        ("a.json", '[{"user": 1, "item": 2},\n', ("JSON", "line")),
        ("a.jsonl", '{"user": 1, "item": 2}\nhello\n', ("line 2", "JSON")),
        ("a.jsonl", '{"user": 1, "item": 2}\n{"user": [1], "item": 2}\n', ("line 2", "'user'")),
        ("a.csv", "u1,i5,4\nu2,i6,3\n", ("first line", "u1,i5,4", "--no-header")),
        ("a.csv", "u1,i5\nu2,i6\n", ("first line", "--no-header")),
        ("a.tsv", "u1\ti5\t4\nu2\ti6\t3\n", ("first line", "--no-header")),
        ("a.txt", "1 2 3\n4 5 6\n", ("3 numbers", "--delimiter", "space", "list")),
        ("a.csv", "user;item;value\n7;x;1,5\n", ("'1,5'", "--decimal")),
    ],
)
def test_layouts_that_are_refused(tmp_path: Path, name: str, text: str, facts: tuple[str, ...]) -> None:
    path = tmp_path / name
    path.write_text(text)
    with refused(BadInput, path, *facts) as caught:
        read(tmp_path, path, Columns(), Layout())
    assert "\n" not in str(caught.value)


def test_what_was_understood_is_said(tmp_path: Path) -> None:
    sources = []
    for name, header in (("a.csv", "user_id:token,item_id:token,rating:float"), ("b.csv", "shopper,sku,day")):
        path = tmp_path / name
        path.write_text(header + "\n1,2,3\n")
        sources.append(readers.open_source(path, Columns()))
    (line,) = readers.understood(sources[:1])
    says(line, "user=user_id:token", "item=item_id:token", "value=rating:float")
    first, second = readers.understood(sources)
    says(first, "a.csv")
    says(second, "b.csv", "user=shopper", "item=sku", "counts 1", "position", "--user-col", "--item-col")


def test_a_models_columns_come_before_common_names(tmp_path: Path) -> None:
    model = Columns("buyer", "sku", "qty")
    for header, columns in (
        ("userid,buyer,sku,qty", model),
        ("user,item,rating", Columns("user", "item", "rating")),
        ("buyer,sku", Columns("buyer", "sku")),
    ):
        path = tmp_path / "a.csv"
        path.write_text(header + "\n" + ",".join("1" for _ in header.split(",")) + "\n")
        assert readers.open_source(path, Columns(), model=model).columns == columns


def test_splits_by_time_need_times_in_every_file(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "other.csv"
    first.write_text("user,item,time\n1,2,3\n")
    second.write_text("user,item\n1,2\n")
    for split in ("leave-last", "temporal"):
        with refused(BadInput, "other.csv", split, "--time-col"):
            ingest.open_inputs([first, second], Columns(), None, Filters(), split, 0)
    ingest.open_inputs([first, second], Columns(), None, Filters(), "random", 0)
