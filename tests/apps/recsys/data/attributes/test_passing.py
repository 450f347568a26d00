"""Attributes from a table of items to a mask: values, bytes, the logic of nulls, and files that cannot be."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys.data import arrow_numpy, ingest, readers
from apps.recsys.data.attributes.collect import Carried, collect
from apps.recsys.data.attributes.passing import Kept, UnknownAttribute, limited
from apps.recsys.data.attributes.stored import BLOCK, arrays, code_type, listed, write
from apps.recsys.data.columns import Columns
from apps.recsys.data.id_index import Vocabulary
from apps.recsys.data.staging import Filters
from common.errors import BadInput, UsageError
from tests.messages import refused, says

ITEMS = 6


def ingested(folder: Path, table: Path, items: int = ITEMS) -> ingest.Facts:
    """Read a table of items of a training in which all items are bought by two users."""
    with (folder / "pairs.csv").open("w") as stream:
        csv.writer(stream).writerows([("user", "item"), *((user, item) for user in (1, 2) for item in range(items))])
    inputs = ingest.open_inputs([folder / "pairs.csv"], Columns(), table, Filters(), "none", 0)
    return ingest.ingest(inputs, folder)


def passing(folder: Path, facts: ingest.Facts, where: str, say: Any = lambda line: None) -> list[int]:
    """Rows of the items that pass."""
    manifest = {"items": facts.items, "attributes": list(facts.attributes)}
    mask = limited(None, where, folder, manifest, say)
    assert mask is not None and mask.dtype == bool and len(mask) == facts.items
    return [int(row) for row in np.flatnonzero(mask)]


FILMS = {
    "item": [0, 1, 2, 3, 5, 77],
    "title": ["a", "b", "c", "d", "f", "z"],
    "genre": [["Comedy", "Drama"], ["Drama"], [], None, ["Noir"], ["Other"]],
    "year": [1990, None, 2001, 1985, 1999, 1],
    "score": [0.5, 1.25, float("nan"), None, 2.0, 9.0],
    "adult": [True, False, None, False, True, True],
    "studio": ["A", "B", "A", "", "C|D", "E"],
}


def as_csv(folder: Path) -> Path:
    """The films as text."""
    with (folder / "films.csv").open("w", encoding="utf-8") as stream:
        out = csv.writer(stream)
        out.writerow(FILMS)
        for row in zip(*FILMS.values(), strict=True):
            out.writerow(
                [
                    "" if cell is None or cell != cell else "|".join(cell) if isinstance(cell, list) else cell
                    for cell in row
                ]
            )  # type: ignore[comparison-overlap]
    return folder / "films.csv"


def as_parquet(folder: Path) -> Path:
    """The films with types."""
    pq.write_table(pa.table(FILMS), folder / "films.parquet")
    return folder / "films.parquet"


def as_json(folder: Path) -> Path:
    """The films as JSON lines."""
    rows = (dict(zip(FILMS, row, strict=True)) for row in zip(*FILMS.values(), strict=True))
    lines = (json.dumps(row).replace("NaN", "null") + "\n" for row in rows)
    (folder / "films.jsonl").write_text("".join(lines))
    return folder / "films.jsonl"


@pytest.mark.parametrize("write", [as_csv, as_parquet, as_json])
def test_every_format_says_the_same(tmp_path: Path, write: Any) -> None:
    facts = ingested(tmp_path, write(tmp_path))
    described = [(one["name"], one["kind"], one["several"], one["values"]) for one in facts.attributes]
    assert described == [
        ("genre", "text", True, 3),
        ("year", "number", False, 4),
        ("score", "number", False, 3),
        ("adult", "truth", False, 2),
        ("studio", "text", True, 4),
    ]
    assert not facts.left_out and facts.titled == 5
    for where, rows in {
        "genre = Drama": [0, 1],
        "genre in (Noir, Comedy)": [0, 5],
        "not genre = Drama": [5],
        "genre = Comedy and genre = Drama": [0],
        "year >= 1990": [0, 2, 5],
        "not year >= 1990": [3],
        "year != 1985": [0, 2, 5],
        "year in (1985, 2001) or adult = true": [0, 2, 3, 5],
        "score > 0.5": [1, 5],
        "adult = false": [1, 3],
        "adult in (true, FALSE)": [0, 1, 3, 5],
        "studio = D or studio < B": [0, 2, 5],
        "not (studio in (A, B) or year < 1)": [5],
        "year = 1": [],
    }.items():
        assert passing(tmp_path, facts, where) == rows, where


def test_codes_are_small(tmp_path: Path) -> None:
    """A byte an item and category up to 254 of them, and 8 more for each distinct number."""
    facts = ingested(tmp_path, as_parquet(tmp_path))
    year = np.load(tmp_path / "attribute.1.codes.npy")
    assert year.dtype == np.uint8 and len(year) == ITEMS and year.tolist() == [1, 0, 2, 3, 0, 4]
    assert np.load(tmp_path / "attribute.1.values.npy").tolist() == [1990, 2001, 1985, 1999]
    assert np.load(tmp_path / "attribute.0.indptr.npy").tolist() == [0, 2, 3, 3, 3, 3, 4]
    assert np.load(tmp_path / "attribute.0.codes.npy").tolist() == [1, 2, 2, 3]
    assert np.load(tmp_path / "attribute.0.letters.npy").tobytes() == b"ComedyDramaNoir"
    assert "\x1b" not in listed([{**facts.attributes[0], "name": "\x1b[2J"}])
    for number, attribute in enumerate(facts.attributes):
        for name, (kind, length) in arrays(number, attribute, facts.items).items():
            array = np.load(tmp_path / name)
            assert (array.dtype.str, len(array)) == (kind, length)
    assert [code_type(values) for values in (254, 255, 65_534, 65_535)] == ["|u1", "<u2", "<u2", "<i4"]


def test_columns_that_are_no_attributes(tmp_path: Path) -> None:
    table = {
        "item": [0, 1, 1],
        "title": ["a", "b", "c"],
        "vector": pa.array([[0.5, 0.1]] * 3),
        "struct": [{"a": 1}] * 3,
        "empty": pa.nulls(3),
        "long": ["x" * 2000, "a", "b"],
        "bytes": [b"\xff", b"a", b"b"],
        "day": pa.array([0, 1, 2], pa.date32()),
        "price": ["1.50", "x", "007"],
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    facts = ingested(tmp_path, tmp_path / "t.parquet")
    assert [one["name"] for one in facts.attributes] == ["day", "price"]
    assert [name for name, _ in facts.left_out] == ["vector", "struct", "empty", "long", "bytes"]
    assert passing(tmp_path, facts, "day >= '1970-01-03'") == [1]  # of two lines, the last one counts
    assert passing(tmp_path, facts, "price = '007' or price = '1.50'") == [0, 1]


def test_zip_codes_and_mixed_columns_stay_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("item,title,zip,mixed,plain\n0,a,007,1,-1.5\n1,b,010,x,2e3\n2,c,,true, 7 \n")
    facts = ingested(tmp_path, tmp_path / "t.csv")
    assert [one["kind"] for one in facts.attributes] == ["text", "text", "number"]
    assert passing(tmp_path, facts, "zip = '007' or plain = 7") == [0, 2]


def test_the_table_of_movielens(tmp_path: Path) -> None:
    lines = ["0::Toy Story (1995)::Animation|Children's|Comedy", "5::Heat: or not (1995)::Action|Sci-Fi"]
    (tmp_path / "movies.dat").write_text("\n".join(lines) + "\n")
    facts = ingested(tmp_path, tmp_path / "movies.dat")
    assert [(one["name"], one["values"]) for one in facts.attributes] == [("genres", 5)] and facts.titled == 2
    assert passing(tmp_path, facts, "genres in (Sci-Fi)") == [5]
    assert passing(tmp_path, facts, 'genres = "Children\'s" and not genres = Action') == [0]


VALUES = (None, 0, 1, 2)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_it_is_the_logic_of_sql(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Against a plain evaluation with three truth values, for several blocks of items and any tree."""
    folder, items = tmp_path_factory.mktemp("sql"), 50
    single = data.draw(st.lists(st.sampled_from(VALUES), min_size=items, max_size=items))
    several = data.draw(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=items, max_size=items))
    single[0], several[0] = 0, [0]
    columns = {"item": [*range(items)], "title": ["x"] * items, "n": pa.array(single, pa.int8()), "s": several}
    pq.write_table(pa.table(columns), folder / "t.parquet")
    facts = ingested(folder, folder / "t.parquet", items)
    truth, where = data.draw(trees(3))
    expected = [
        row
        for row in range(items)
        if truth({"n": [] if single[row] is None else [single[row]], "s": several[row]}) is True
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apps.recsys.data.attributes.stored.BLOCK", 7)
        assert passing(folder, facts, where) == expected, where


COMPARE = {"=": lambda a, b: a == b, "<": lambda a, b: a < b, ">=": lambda a, b: a >= b}


@st.composite
def trees(draw: Any, height: int) -> tuple[Any, str]:
    """Draw a function of an item's values, which returns True, False or None, and the same as text."""
    kind = draw(st.sampled_from(("leaf", "in", "not", "and", "or"))) if height else "leaf"
    if kind == "not":
        inner, text = draw(trees(height - 1))
        return lambda item: None if (value := inner(item)) is None else not value, f"not ({text})"
    if kind in ("and", "or"):
        parts = draw(st.lists(trees(height - 1), min_size=2, max_size=3))
        stops = kind == "or"

        def joined(item: Mapping[str, Sequence[int]]) -> bool | None:
            values = [part(item) for part, _ in parts]
            return stops if stops in values else None if None in values else not stops

        return joined, "(" + f" {kind} ".join(text for _, text in parts) + ")"
    name, number = draw(st.sampled_from("ns")), draw(st.integers(0, 3))
    if kind == "in":
        chosen = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
        text = f"{name} in ({', '.join(map(str, chosen))})"
        return lambda item: any(one in chosen for one in item[name]) if item[name] else None, text
    sign = draw(st.sampled_from(sorted(COMPARE)))
    function = COMPARE[sign]
    return (
        lambda item: any(function(one, number) for one in item[name]) if item[name] else None,
        f"{name} {sign} {number}",
    )


def test_more_items_than_a_block(tmp_path: Path) -> None:
    items = 2 * BLOCK + 3
    columns = {
        "item": [*range(items)],
        "title": ["x"] * items,
        "n": [*range(items)],
        "s": [[n % 5, 9] for n in range(items)],
        "q": [n // 4 for n in range(items)],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    facts = ingested(tmp_path, tmp_path / "t.parquet", items)
    assert np.load(tmp_path / "attribute.0.codes.npy").dtype == np.uint16
    rows = passing(tmp_path, facts, f"n >= {BLOCK - 1} and s = 3 and not n in ({BLOCK - 1}, 5) and q != {BLOCK // 3}")
    assert rows == [n for n in range(BLOCK - 1, items) if n % 5 == 3 and n != BLOCK - 1 and n // 4 != BLOCK // 3]


def test_what_does_not_compare(tmp_path: Path) -> None:
    facts = ingested(tmp_path, as_parquet(tmp_path))
    for where, words in {
        "year = 'x'": ("year", "number", "'x'", "character 8"),
        "year in (1, Drama)": ("year", "Drama", "character 13"),
        "genre = 3": ("genre", "text", "3", "character 9"),
        "adult = 1": ("adult", "true or false", "character 9"),
        "adult = 'true'": ("adult", "'true'"),
        "adult < true": ("adult", "order"),
    }.items():
        with refused(UsageError, "--where", *words):
            passing(tmp_path, facts, where)
    with refused(UnknownAttribute, "'title'", "genre", "year", "score", "adult", "studio"):
        passing(tmp_path, facts, "year = 1 or title = a")
    with refused(BadInput, "none", "--items"):
        limited(None, "a = 1", tmp_path, {"items": 3}, print)
    said: list[str] = []
    assert passing(tmp_path, facts, "genre = drama", said.append) == []
    says(said[0], "'drama'", "genre")
    says(said[1], "no item")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("attribute.1.codes", [9, 0, 2, 3, 0, 4]),
        ("attribute.0.codes", [1, 2, 2, 0]),
        ("attribute.0.codes", [1, 2, 2, 200]),
        ("attribute.0.indptr", [0, 2, 3, 3, 3, 3, 9]),
        ("attribute.0.indptr", [0, 4, 3, 3, 3, 3, 4]),
        ("attribute.0.indptr", [-1, 2, 3, 3, 3, 3, 4]),
        ("attribute.0.indptr", [0, 4, 4, 4, 4, 4, 4]),
        ("attribute.0.ends", [6, 5, 15]),
        ("attribute.0.ends", [6, 11, 16]),
        ("attribute.0.ends", [-6, 11, 15]),
        ("attribute.0.letters", [255] * 15),
    ],
)
def test_files_that_cannot_be(tmp_path: Path, name: str, values: list[int]) -> None:
    facts = ingested(tmp_path, as_parquet(tmp_path))
    path = tmp_path / f"{name}.npy"
    np.save(path, np.array(values, np.load(path).dtype))
    with refused(BadInput, name.rpartition(".")[0], "damaged") as caught:
        passing(tmp_path, facts, "genre > A or year = 1990")
    assert "\n" not in str(caught.value)


def test_attributes_of_a_model_are_carried_over(tmp_path: Path) -> None:
    """Items keep their values, also under new rows; a line of a new table replaces those of its columns."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir(), new.mkdir()
    facts = ingested(old, as_parquet(old))
    items = Vocabulary(new, "item")
    items.encode(arrow_numpy.text([*map(str, range(ITEMS)), "8", "9"]))
    keep = np.array([True, False, True, True, True, True, True, True])  # the second item is left out
    (new / "t.csv").write_text("item,title,year,genre,size\n2,c,1955,,7\n8,y,2020,Drama|Opera,8\n77,z,1,x,9\n")
    carried = Carried(old, facts.attributes)
    source, _ = readers.open_titles(new / "t.csv")
    collected = collect(source, ["year", "genre", "size"], items, keep, new, carried)
    assert [(one["name"], one["kind"]) for one in collected.attributes] == [
        *[(one["name"], one["kind"]) for one in facts.attributes],
        ("size", "number"),
    ]
    updated = replace(facts, items=7, attributes=tuple(collected.attributes))
    for where, rows in {
        "year >= 1955": [0, 1, 2, 4, 5],  # items 0, 2 (1955 now), 3, 5 and 8
        "year = 1955 or year = 2020": [1, 5],
        "genre in (Comedy, Drama)": [0, 5],
        "genre = Opera or genre = Noir": [4, 5],
        "not genre = Drama": [4],
        "adult = true or studio = B": [0, 4],
        "score in (0.5, 2)": [0, 4],
        "size > 7": [5],
    }.items():
        assert passing(new, updated, where) == rows, where
    alone = collect(None, [], items, keep, new, carried)
    assert [one["name"] for one in alone.attributes] == [one["name"] for one in facts.attributes]
    assert np.load(old / "attribute.4.letters.npy").tobytes() == b"ABCD"
    assert np.load(new / "attribute.4.letters.npy").tobytes() == b"ACD"  # only the item that is left out had B
    assert passing(new, replace(updated, attributes=tuple(alone.attributes)), "year > 1900 and adult = true") == [0, 4]
    for line, fact in (("2,c,old,,7", "number"), ("2,c,x,,7", "number")):
        (new / "t.csv").write_text(f"item,title,year,genre,size\n{line}\n")
        with refused(BadInput, "t.csv", "'year'", fact):
            collect(readers.open_titles(new / "t.csv")[0], ["year"], items, keep, new, carried)
    pq.write_table(pa.table({"item": [2], "title": ["c"], "studio": [3]}), new / "t.parquet")
    with refused(BadInput, "t.parquet", "'studio'", "text"):
        collect(readers.open_titles(new / "t.parquet")[0], ["studio"], items, keep, new, carried)
    items.close()


def test_expressions_that_are_kept_give_the_same_masks(tmp_path: Path) -> None:
    codes = np.array([1, 2, 0, 2, 3, 1])
    values = arrow_numpy.numbers(np.array([1.0, 2.0, 5.0]))
    write(tmp_path, 0, codes, None, [values], as_text=False)
    part = {"name": "a", "kind": "number", "several": False, "values": 3, "entries": 6, "longest": 1, "letters": 0}
    manifest = {"items": 6, "attributes": [part]}
    kept = Kept(tmp_path, manifest, most=2)
    wheres = ["a = 2", "a in (1, 5)", "a != 2", "a > 1", "a = 9"]
    for where in [*wheres, *wheres, "a = 9", "a = 9"]:
        found, fresh = (one(None, where) for one in (_by(kept), _by_function(tmp_path, manifest)))
        assert found.tolist() == fresh.tolist()
        allowed = np.arange(6) % 2 == 0
        assert _by(kept)(allowed.copy(), where).tolist() == (fresh & allowed).tolist()
    assert kept.limited(None, None, print) is None
    assert len(kept._kept) == 2
    with refused(UnknownAttribute, "b"):
        kept.limited(None, "b = 1", print)


def _by(kept: Kept) -> Any:
    return lambda allowed, where: kept.limited(allowed, where, lambda line: None)


def _by_function(folder: Path, manifest: Any) -> Any:
    return lambda allowed, where: limited(allowed, where, folder, manifest, lambda line: None)
