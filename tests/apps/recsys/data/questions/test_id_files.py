"""Files of ids: the same ids from every format, one line for what is no file of ids, and no memory without a bound."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys.data.questions import id_files
from common.errors import BadInput
from tests.messages import refused

IDS = ["7", "Oak, Ash", "ü", "08"]


def written(path: Path, text: str) -> Path:
    """A file of text."""
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "7\nOak, Ash\r\n\n  ü \n08"),
        ("a", "\ufeff7\nOak, Ash\nü\n08\n"),
        ("a.csv", '7\n"Oak, Ash"\nü\n\n08\n'),
        ("a.csv", 'Item ID\n7\n"Oak, Ash"\nü\n08\n'),
        ("a.csv", 'title,item_id\nx,7\ny,"Oak, Ash"\nz,ü\nw,08\n'),
        ("a.tsv", "id\ttitle\n7\tx\nOak, Ash\ty\nü\tz\n08\t\n"),
        ("a.jsonl", '7\n"Oak, Ash"\n{"title": "z", "item": "ü"}\n["08"]\n'),
        ("a.jsonl", '[7.0, "Oak, Ash", null, "", "ü", "08"]\n'),
    ],
)
def test_ids_of_text(tmp_path: Path, name: str, text: str) -> None:
    assert list(id_files.ids(written(tmp_path / name, text), "item")) == IDS
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert list(id_files.ids(packed, "item")) == IDS


@pytest.mark.parametrize("names", [["other"], ["title", "item"]])
def test_ids_of_columns(tmp_path: Path, names: list[str]) -> None:
    for values, right in (([*IDS, None], IDS), ([7, 8, None], ["7", "8"]), ([7.0, 8.0], ["7", "8"])):
        table = pa.table({name: pa.array(values) for name in names})
        pq.write_table(table, tmp_path / "a.parquet")
        with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        for name in ("a.parquet", "a.arrow"):
            assert list(id_files.ids(tmp_path / name, "item")) == right


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("h.txt", '1,2\n"Oak, Ash"\n\n 3 , ,4\n'),
        ("h.tsv", "1\t2\nOak, Ash\n3\t4\n"),
        ("h.jsonl", '[1, 2]\n["Oak, Ash"]\n{"user": 5, "items": ["3", 4]}\n'),
        ("h", '\n[1, 2]\n["Oak, Ash"]\n["3", "4"]'),
    ],
)
def test_histories(tmp_path: Path, name: str, text: str) -> None:
    path = written(tmp_path / name, text)
    right = [["1", "2"], ["Oak", "Ash"] if name == "h.tsv" else ["Oak, Ash"], ["3", "4"]]
    if name == "h.tsv":  # a comma anywhere makes all commas separators
        right = [["1\t2"], ["Oak", "Ash"], ["3\t4"]]
    assert list(id_files.histories(path)) == right
    for separator in "\t ":
        assert list(id_files.histories(written(path.with_name("s"), f"1{separator}2\n\n3\n"))) == [["1", "2"], ["3"]]
    table = pa.table({"u": [1, 2], "items": [["1", "2"], None]})
    pq.write_table(table, tmp_path / "h.parquet")
    assert list(id_files.histories(tmp_path / "h.parquet")) == [["1", "2"], []]


@settings(max_examples=60, deadline=None)
@given(lists=st.lists(st.lists(st.text(min_size=1).filter(str.strip), max_size=5), min_size=1, max_size=6))
def test_json_lines_hold_any_text(lists: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "h.jsonl"
    written(path, "".join(json.dumps(one) + "\n" for one in lists))
    assert list(id_files.histories(path)) == lists
    assert list(id_files.ids(path, "user")) == [id_ for one in lists for id_ in one]


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("a.csv", b"x,y\n1,2\n", ("item", "x, y")),
        ("a.txt", b"1\n\xff\xfe\xfd\n", ("UTF-8",)),
        ("a.txt", b"1\n2\0\n", ("line 2", "text")),
        ("a.txt", b"1\n" + b"7" * (id_files.LONGEST_LINE + 1), ("line 2", "1,048,576")),
        ("a.jsonl", b'"1"\n{"b": [true]}\n', ("line 2", "bool")),
        ("a.jsonl", b'"1"\n[1.5]\n', ("line 2", "float")),
        ("a.jsonl", b'["\\ud800"]\n', ("line 1", "surrogate")),
        ("a.jsonl", b"[1,\n2]\n", ("line 1", "JSON")),
        ("a.parquet", b"PAR1", ("a.parquet",)),
        ("a.gz", b"\x1f\x8b\x08", ("a.gz",)),
    ],
)
def test_what_is_no_file_of_ids(tmp_path: Path, name: str, content: bytes, facts: tuple[Any, ...]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with refused(BadInput, *facts) as caught:
        list(id_files.ids(path, "item"))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    with refused(BadInput, "no such file"):
        list(id_files.histories(tmp_path / "absent"))
    with refused(BadInput, "line 2", "list"):
        list(id_files.histories(written(tmp_path / "h.jsonl", '[1]\n{"a": [1], "b": [2]}\n')))
