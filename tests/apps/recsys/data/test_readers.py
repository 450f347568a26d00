"""Input files: columns, ids, damage; always one clear line."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from apps.recsys.data import ingest, readers, staging
from apps.recsys.data.csr_store import History, NpyReader, NpyWriter
from apps.recsys.data.formats import unpacked
from apps.recsys.data.id_table import IdTable
from apps.recsys.data.readers import Columns
from apps.recsys.data.staging import Filters
from common.errors import BadInput
from tests.messages import missing, refused


def read(
    tmp_path: Path, *paths: Path, columns: Columns = Columns(), split: str = "none", **filters: float
) -> ingest.Facts:
    inputs = ingest.open_inputs(list(paths), columns, None, Filters(**filters), split, 0)
    out = tmp_path / "out"
    out.mkdir()
    return ingest.ingest(inputs, out)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_are_found_by_common_names_and_then_by_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "rating,movie_id,UserID,ts\n5,1,2,3\n")
    assert readers.open_source(path, Columns()).columns == Columns("UserID", "movie_id", "rating", "ts")
    path = write(tmp_path / "b.csv", "left;right\n1;2\n")
    source = readers.open_source(path, Columns())
    assert (source.columns, source.delimiter) == (Columns("left", "right"), ";")


@pytest.mark.parametrize(
    ("text", "columns", "facts"),
    [
        ("", Columns(), ("empty",)),
        ("\n", Columns(), ("empty",)),
        ("user,item\n", Columns(), ("rows", "header")),
        ("user,item,rating\n1,2,3\n", Columns(value="stars"), ("'stars'", "user, item, rating")),
        ("user,item,rating\na,b,1\na,c,good\n", Columns(), ("line 3", "'rating'", "'good'", "number")),
        ("user,item,rating\na,b,1\na,c\n", Columns(), ("line 3", 2, "columns", "header")),
        ("user,item,rating\na,b,-1\n", Columns(), ("row 1", "'rating'", -1)),
        ("user,item,rating\na,b,inf\n", Columns(), ("row 1", "'rating'", "inf", "finite")),
        ("user,item,rating\na,b,1\nc,d,-2\n", Columns(), ("row 2", "'rating'", -2, "--min-value")),
        ("user,item,rating\na,b,0\nc,d,0\n", Columns(), ("0 users", "2 rows")),
        ("user,item\na,b\nc\x00,d\n", Columns(), ("'user'", "NUL")),
        ("user,item\na,b\nc," + "d" * 10_240 + "\n", Columns(), ("'item'", "'dddddddddddddddddddd'")),
        ("user,item\na,b\nc," + "d" * 2_000_000 + "\n", Columns(), ("row", "524,288 bytes")),
        ("user,item,rating\na,b,1\nc,d,2\ne,f", Columns(), ("line 4", 2, "columns", 3)),
        ("user,item,rating\na,b,1\nc,d,2,9\n", Columns(), ("line 3", 4, "columns")),
        ("user,item,rating\na,b,1\nc,d,two\n", Columns(), ("line 3", "'rating'", "'two'", "number")),
        ("user,item\na,b\na,c\n", Columns(), ("1 user",)),
        ("user,item\na,b\nc,b\n", Columns(), ("1 item",)),
        ("user\na\n", Columns(), ("one column", "'user'")),
        ("user,user\na,b\n", Columns(), ("columns", "name", "user, user")),
        ("1,1193,5\n1,661,3\n", Columns(), ("first line", "1,1193,5")),
    ],
)
def test_defects_are_named(tmp_path: Path, text: str, columns: Columns, facts: tuple[object, ...]) -> None:
    path = write(tmp_path / "bad.csv", text)
    with refused(BadInput, path, *facts) as caught:
        read(tmp_path, path, columns=columns)
    assert "\n" not in str(caught.value) and str(path) not in caught.value.public


@pytest.mark.parametrize("date", ["soon", "2024-13-01"])
def test_times_that_are_none(tmp_path: Path, date: str) -> None:
    path = write(tmp_path / "a.csv", f"user,item,date\na,b,2024-01-01\nc,d,{date}\n")
    with refused(BadInput, "'date'", f"'{date}'"):
        read(tmp_path, path, split="leave-last")


def test_a_minimum_leaves_negative_values_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,item,rating\na,b,1\nc,d,-2\ne,f,3\n")
    facts = read(tmp_path, path, min_value=1)
    assert (facts.users, dict(facts.dropped)) == (2, {"below --min-value": 1})


def test_a_file_that_expands_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "LEAST_BYTES", 1 << 20)
    for number, (name, rows) in enumerate((("a.csv.gz", b"1,2\n"), ("a.dat.gz", b"1::2::3\n"), ("b.csv.gz", b"1,"))):
        path = tmp_path / name
        path.write_bytes(gzip.compress((b"" if b"::" in rows else b"user,item\n") + rows * ((16 << 20) // len(rows))))
        place = tmp_path / str(number)
        place.mkdir()
        with refused(BadInput, name) as caught:
            read(place, path)
        assert not missing(str(caught.value), 250, "times") or not missing(str(caught.value), "row", "524,288")


def test_types_of_ids(tmp_path: Path) -> None:
    """Numbers in one file are the same ids as their text in another; what is no id is named."""
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"user": [1, 2], "item": [10, 20]}), tmp_path / "a.parquet")
    text = write(tmp_path / "b.csv", "user,item\n2,10\nbob,20\n")
    facts = read(tmp_path, tmp_path / "a.parquet", text)
    assert (facts.users, facts.items, facts.interactions) == (3, 2, 4)
    users = IdTable(tmp_path / "out" / "users.parquet")
    assert [users.id(row) for row in range(3)] == ["1", "2", "bob"]
    lists = pa.table({"user": [[1], [2]], "item": [1, 2]})
    pyarrow.parquet.write_table(lists, tmp_path / "c.parquet")
    place = tmp_path / "c"
    place.mkdir()
    with refused(BadInput, "c.parquet", "'user'", "list", "id"):
        read(place, tmp_path / "c.parquet")
    values = pa.table({"user": ["a", "b"], "item": ["x", "y"], "value": ["1", "much"]})
    pyarrow.parquet.write_table(values, tmp_path / "d.parquet")
    place = tmp_path / "d"
    place.mkdir()
    with refused(BadInput, "d.parquet", "'value'", "'much'", "number"):
        read(place, tmp_path / "d.parquet")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = gzip.compress(b"user,item\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(5000)))
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    parquet = tmp_path / "not.parquet"
    parquet.write_bytes(b"user,item\n1,2\n")
    for number, path in enumerate((cut, parquet, tmp_path / "absent.csv")):
        place = tmp_path / str(number)
        place.mkdir()
        with refused(BadInput, path.name):
            read(place, path)


def test_matrix_equals_that_of_pandas(tmp_path: Path) -> None:
    import pandas as pd

    random = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "user": [f"u{n}" for n in random.integers(0, 60, 5000)],
            "item": random.integers(0, 90, 5000),
            "count": random.integers(1, 9, 5000),
        }
    )
    half = tmp_path / "half.parquet"
    frame[:2500].to_csv(tmp_path / "half.csv.gz", index=False)
    frame[2500:].to_parquet(half)
    facts = read(tmp_path, tmp_path / "half.csv.gz", half)
    users, user_ids = pd.factorize(frame["user"])
    items, item_ids = pd.factorize(frame["item"])
    dense = np.zeros((len(user_ids), len(item_ids)))
    np.add.at(dense, (users, items), frame["count"])
    history = History(tmp_path / "out")
    ours = np.zeros_like(dense)
    for user in range(history.rows):
        row = history.items(user)
        assert (np.diff(row) > 0).all()
        ours[user, row] = history.values(user)
    np.testing.assert_array_equal(ours, dense)
    assert (facts.users, facts.items) == dense.shape
    assert facts.interactions == history.size == int((dense > 0).sum())
    table = IdTable(tmp_path / "out" / "users.parquet")
    assert [table.id(row) for row in range(len(table))] == list(user_ids)
    table = IdTable(tmp_path / "out" / "items.parquet")
    assert [table.id(row) for row in range(len(table))] == list(item_ids)
    assert table.row(str(item_ids[7])) == 7 and table.row("x") is None and table.row("123456") is None


def test_buckets_do_not_change_the_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    rows = "".join(f"{u},{i},{t}\n" for t, (u, i) in enumerate(random.integers(0, 40, (3000, 2))))
    path = write(tmp_path / "a.csv", "user,item,time\n" + rows)
    files = {}
    for size in (1 << 18, 64):
        monkeypatch.setattr(staging, "BUCKET_ROWS", size)
        place = tmp_path / str(size)
        place.mkdir()
        read(place, path, split="leave-last")
        files[size] = {p.name: p.read_bytes() for p in sorted((place / "out").iterdir()) if p.suffix == ".npy"}
    assert files[64] == files[1 << 18]
    assert set(files[64]) == {
        *(f"history.{part}.npy" for part in ("indptr", "items", "values")),
        *(f"heldout.{part}.npy" for part in ("users", "indptr", "items")),
    }


def test_filters_leave_a_core_and_count_what_they_drop(tmp_path: Path) -> None:
    text = "user,item,value\n" + "".join(f"{u},{i},5\n" for u in "abc" for i in "xyz")
    path = write(tmp_path / "a.csv", text + "d,x,5\nd,q,5\na,q,1\n,x,5\na,x,\n")
    facts = read(tmp_path, path, min_value=2, min_user=3, min_item=2)
    assert (facts.users, facts.items, facts.interactions) == (3, 3, 9)
    assert facts.rows == 14
    assert dict(facts.dropped) == {
        "with an empty cell": 2,
        "below --min-value": 1,
        "of users or items below --min-user, --min-item": 2,
    }


def test_ids_stay_as_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,item\n007,1\n7,2\n")
    read(tmp_path, path)
    users, items = (IdTable(tmp_path / "out" / f"{name}.parquet") for name in ("users", "items"))
    assert [users.id(0), users.id(1)] == ["007", "7"]
    assert [items.id(0), items.id(1)] == [1, 2]


def test_npy_files_are_numpys(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with NpyWriter(path, "<i4") as writer:
        writer.append(np.arange(5))
        writer.append(np.arange(3))
    np.testing.assert_array_equal(np.load(path), [0, 1, 2, 3, 4, 0, 1, 2])
    np.testing.assert_array_equal(NpyReader(path)[3:6], [3, 4, 0])


def test_dates_order_the_rows(tmp_path: Path) -> None:
    days = ("2024-02-01", "2024-01-01", "2024-03-01 10:00:00")
    path = write(
        tmp_path / "a.csv", "user,item,date\n" + "".join(f"{u},{i},{d}\n" for u in "ab" for i, d in enumerate(days))
    )
    facts = read(tmp_path, path, split="leave-last")
    assert facts.scored_users == 2
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "heldout.items.npy"), [2, 2])


PAIRS = [("7", "x"), ("7", "y"), ("8", "x"), ("9", "z")]


def layouts(folder: Path) -> dict[str, Path]:
    """The same rows in every layout that is read."""
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    numbered = [(int(user), ord(item)) for user, item in PAIRS]
    table = pa.table({"user": [u for u, _ in numbered], "item": [i for _, i in numbered]})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    pyarrow.feather.write_feather(table, folder / "a.arrow", compression="uncompressed")
    texts = {
        "csv": "user,item\n" + "".join(f"{u},{i}\n" for u, i in numbered),
        "movielens": "".join(f"{u}::{i}::1::978300760\n" for u, i in numbered),
        "tabs": "".join(f"{u}\t{i}\t1\t978300760\n" for u, i in numbered),
        "lists": "7 120 121\n8 120\n6\n9 122\n",
    }
    paths = {name: write(folder / f"{name}.txt", text) for name, text in texts.items()}
    return paths | {"parquet": folder / "a.parquet", "arrow": folder / "a.arrow"}


def test_all_layouts_give_the_same_matrix(tmp_path: Path) -> None:
    import gzip

    paths = layouts(tmp_path)
    for name in ("movielens", "lists"):
        paths[f"{name}.gz"] = tmp_path / f"{name}.gz"
        paths[f"{name}.gz"].write_bytes(gzip.compress(paths[name].read_bytes()))
    for name, path in paths.items():
        place = tmp_path / f"out-{name}"
        place.mkdir()
        facts = read(place, path)
        assert (facts.users, facts.items, facts.interactions) == (3, 3, 4), name
        users, items = (IdTable(place / "out" / f"{kind}.parquet") for kind in ("users", "items"))
        history = History(place / "out")
        found = [(users.id(u), items.id(i)) for u in range(3) for i in history.items(u)]
        assert found == [(7, 120), (7, 121), (8, 120), (9, 122)], name
        if not path.suffix.startswith((".pa", ".ar")):
            inputs = ingest.open_inputs([path], readers.Columns(), None, staging.Filters(), "none", 0)
            assert ingest.count(inputs).interactions == 4, name


def test_a_delimiter_of_two_characters_may_lie_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "ratings.dat", "".join(f"{n}::{n % 7}::3::4\n" for n in range(500)))
    for size in (64, 65, 66, 67):
        monkeypatch.setattr(readers, "BLOCK_BYTES", size)
        place = tmp_path / str(size)
        place.mkdir()
        facts = read(place, path)
        assert (facts.users, facts.items, facts.rows) == (500, 7, 500)


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,item,rating\na,b,1\nc,d,1e39\n")
    with refused(BadInput, path, "row 2", "'rating'", "1e+39"):
        read(tmp_path, path)
    path = write(tmp_path / "b.csv", "user,item,rating\na,b,3e38\na,b,3e38\nc,d,1\n")
    place = tmp_path / "b"
    place.mkdir()
    with refused(BadInput, "3.4e38"):
        read(place, path)


def test_items_without_a_title_have_none(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    titles = pa.table({"item": ["x", "y"], "title": pa.array([None, "Song"], pa.large_string())})
    pyarrow.parquet.write_table(titles, tmp_path / "t.parquet")
    path = write(tmp_path / "a.csv", "user,item\na,x\nb,y\n")
    inputs = ingest.open_inputs([path], Columns(), tmp_path / "t.parquet", Filters(), "none", 0)
    out = tmp_path / "out"
    out.mkdir()
    assert ingest.ingest(inputs, out).titled == 1
    items = IdTable(out / "items.parquet")
    assert [items.title(row) for row in range(2)] == ["", "Song"]
