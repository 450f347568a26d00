"""``recsys update``: equal to a training on all rows where that can be, and nothing stays of who is forgotten."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.data.csr_store import History
from apps.recsys.data.id_table import IdTable
from apps.recsys.data.splits import HeldOut
from apps.recsys.models import weights
from common.errors import BadInput, UsageError
from tests.apps.recsys.conftest import Trained
from tests.apps.recsys.in_process import done
from tests.messages import refused, says
from tests.promise import kept
from tests.schemas import read_manifest

Run = Callable[..., Any]
Row = tuple[str, str, int]
LINEAR = ("linear", "--set", "form=filter", "--set", "degree_power=0.3", "--set", "saturation=1")
EXACT: dict[str, tuple[object, ...]] = {
    "popularity": ("popularity",),
    "filter": (*LINEAR, "--factors", 0),
    "filter with a spectrum": (*LINEAR, "--factors", 6),
    "coded spectrum": (*LINEAR, "--factors", 6, "--set", "bits=4"),
    "ease": ("linear", "--set", "form=ease", "--set", "ridge=20"),
}
DATA = ("history.indptr.npy", "history.items.npy", "history.values.npy", "items.parquet", "users.parquet")
SECRET, OWN = "Zacharias-9QX", "only-Zacharias-had-it"


def rows(seed: int, users: range, items: range, count: int = 6) -> list[Row]:
    """Interactions of users with items, more with the first ones."""
    random = np.random.default_rng(seed)
    width = len(items)
    return [
        (f"u{user}", f"i{items[int(width * random.random() ** 2)]}", int(random.integers(1, 5)))
        for user in users
        for _ in range(count)
    ]


def table(path: Path, some: Sequence[Row], header: str = "user,item,plays") -> Path:
    """A file of interactions."""
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in some)]) + "\n")
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Old rows, new rows with known and new users and items, and both."""
    old, new = rows(0, range(40), range(25)), rows(1, range(30, 50), range(35))
    paths = [table(tmp_path / f"{name}.csv", some) for name, some in (("old", old), ("new", new), ("all", old + new))]
    return paths[0], paths[1], paths[2]


@pytest.mark.parametrize(
    ("kind", "duplicates"),
    [
        ("popularity", "once"),
        ("filter", "sum"),
        ("filter", "last"),
        ("filter with a spectrum", "sum"),
        ("coded spectrum", "sum"),
        ("ease", "sum"),
    ],
)
def test_it_equals_a_training_on_all_rows(
    files: tuple[Path, Path, Path], tmp_path: Path, kind: str, duplicates: str
) -> None:
    old, new, both = files
    model, updated, again = (tmp_path / name for name in ("model", "updated", "again"))
    options = ("--model", *EXACT[kind], "--duplicates", duplicates, "-q")
    done("train", old, "-o", model, *options)
    results, said = done("update", model, new, "-o", updated)
    done("train", both, "-o", again, *options)
    for name in (weights.WEIGHTS, *DATA):
        assert (updated / name).read_bytes() == (again / name).read_bytes(), name
    ours, theirs = read_manifest(updated), read_manifest(again)
    assert {**ours, "files": 0} == {**theirs, "files": 0}
    before = read_manifest(model)
    assert results["added"] == {name: ours[name] - before[name] for name in ("users", "items", "interactions")}
    says(said, f"+{results['added']['users']} users", "user=user item=item value=plays", "repeated pairs")


def test_a_spectrum_may_be_kept(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    old, new, _ = files
    model, updated, exact = (tmp_path / name for name in ("model", "updated", "exact"))
    done("train", old, "-o", model, "--model", *EXACT["filter with a spectrum"], "-q")
    done("update", model, new, "-o", updated, "--keep-spectrum", "--forget", "u3")
    done("update", model, new, "-o", exact, "--forget", "u3")
    before, after = (weights.read_spectrum(folder / weights.WEIGHTS) for folder in (model, updated))
    names = [IdTable(folder / "items.parquet") for folder in (model, updated)]
    rows = [names[0].row(str(names[1].id(row))) for row in range(len(names[1]))]
    expected = np.array([before[0][row] if row is not None else np.zeros(6) for row in rows], np.float32)
    np.testing.assert_array_equal(after[0], expected)
    np.testing.assert_array_equal(after[1], before[1])
    counts = [weights.read_counts(folder / weights.WEIGHTS) for folder in (updated, exact)]
    np.testing.assert_array_equal(*counts)
    ours, theirs = read_manifest(updated), read_manifest(exact)
    assert {**ours, "files": 0} == {**theirs, "files": 0} and ours["factors"] == 6
    for kind in ("popularity", "coded spectrum", "ease"):
        done("train", old, "-o", tmp_path / kind, "--model", *EXACT[kind], "-q")
        with refused(UsageError, "--keep-spectrum", kind):
            done("update", tmp_path / kind, new, "-o", tmp_path / "out", "--keep-spectrum")


@pytest.mark.parametrize("kind", ["ials", "filter"])
def test_held_out_items_stay_held_out(files: tuple[Path, Path, Path], tmp_path: Path, kind: str) -> None:
    old, new, _ = files
    model, updated = tmp_path / "model", tmp_path / "updated"
    done("train", old, "-o", model, "--split", "random", "--model", *EXACT.get(kind, (kind,)), "-q")
    results, _ = done("update", model, new, "-o", updated, "--forget", "u3")
    before, after = HeldOut(model), HeldOut(updated)
    users = [IdTable(folder / "users.parquet") for folder in (model, updated)]
    items = [IdTable(folder / "items.parquet") for folder in (model, updated)]
    pairs = [
        {(users[at].id(user), items[at].id(item)) for row, user in enumerate(held.users) for item in held.items(row)}
        for at, held in enumerate((before, after))
    ]
    assert pairs[1] == {pair for pair in pairs[0] if pair[0] != "u3"} != pairs[0]
    assert results["data"]["scored_users"] == len(before) - 1 and 0 < results["metrics"]["recall@50"] <= 1
    if kind == "filter":
        trained, history = History(updated, "trained"), History(updated)
        assert trained.size == history.size - after.size
        counts = np.bincount(trained.items(0, trained.rows), minlength=len(items[1]))
        np.testing.assert_array_equal(weights.read_counts(updated / weights.WEIGHTS), counts)


@pytest.mark.parametrize("kind", [*EXACT, "ials", "bpr"])
def test_nothing_stays_of_who_is_forgotten(tmp_path: Path, kind: str) -> None:
    """Neither his id, nor an item that only he had, nor a pair, also of a file that comes with the update."""
    old = [*rows(0, range(20), range(12)), (SECRET, "i1", 3), (SECRET, OWN, 7), (SECRET, "i2", 9)]
    model, same = tmp_path / "model", tmp_path / "same"
    titles = tmp_path / "titles.csv"
    titles.write_text(f"item,title,author\ni1,One,Ann\ni2,Two,Bob\n{OWN},His alone,Only author\n")
    quick = ("--epochs", 2, "--factors", 4) if kind in ("ials", "bpr") else ()
    options = ("--model", *EXACT.get(kind, (kind,)), *quick, "--split", "random", "--items", titles, "-q")
    done("train", table(tmp_path / "old.csv", old), "-o", model, *options)
    (model / ".training").mkdir()
    (model / ".training" / "left.npy").write_text(SECRET)
    new = table(tmp_path / "new.csv", [(SECRET, "i4", 2), ("u1", "i5", 2)])
    shutil.copytree(model, same)
    for folder, more in ((tmp_path / "without", (new,)), (same, ())):  # the second in its own place
        results, said = done("update", model if more else same, *more, "-o", folder, "--forget", SECRET)
        whole = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
        for trace in (SECRET, OWN, "His alone", "Only author"):
            assert trace.encode() not in whole, trace
        history, users = History(folder), IdTable(folder / "users.parquet")
        expected = {(user, item) for user, item, _ in old if user != SECRET} | ({("u1", "i5")} if more else set())
        items = IdTable(folder / "items.parquet")
        assert {(users.id(u), items.id(i)) for u in range(history.rows) for i in history.items(u)} == expected
        assert results["data"]["forgotten"] == 3
        assert [one["name"] for one in read_manifest(folder)["attributes"]] == ["author"]
        only, _ = done("recommend", folder, "--history", "i0", "--keep-seen", "--where", "author = Bob", "--json")
        assert [(item["id"], item["title"]) for item in only["items"]] == [("i2", "Two")]
        assert json.loads((folder / "model.json").read_text())["interactions"] == len(expected)
    if kind in ("ials", "bpr"):
        says(said, "vectors", "training without")
        before, after = (weights.read(folder / weights.WEIGHTS) for folder in (model, folder))
        place = [IdTable(model / "items.parquet").row(items.id(row)) for row in range(len(items))]
        np.testing.assert_array_equal(after, before[place])


def test_what_cannot_be_added(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    old, new, _ = files
    model, out = tmp_path / "model", tmp_path / "out"
    done("train", old, "-o", model, "--model", "popularity", "-q")
    several: list[tuple[list[Row], str, tuple[object, ...]]] = [
        ([("u1", "i1", -2)], "user,item,plays", ("row 1", "plays", -2, "--forget")),
        ([("u1", "i1", 2)], "user,item,count", ("plays", "count", "--value-col")),
        ([("u1", "i1", 2)], "buyer,item,plays", ("user", "buyer", "--user-col")),
    ]
    for number, (some, header, facts) in enumerate(several):
        path = table(tmp_path / "wrong.csv", some, header)
        with refused(BadInput, path, *facts):
            done("update", model, path, "-o", tmp_path / f"wrong-{number}")
    with refused(BadInput, "--forget", "nobody"):
        done("update", model, new, "-o", tmp_path / "nobody", "--forget", "nobody")
    with refused(UsageError, "--forget"):
        done("update", model, "-o", out)
    (model / "model.json").write_text((model / "model.json").read_text().replace('"recsys"', '"imaging"'))
    with refused(BadInput, model, "imaging", "recsys"):
        done("update", model, new, "-o", out)
    assert not out.exists()


def test_a_window_of_time_cannot_be_updated(tmp_path: Path) -> None:
    """Its model keeps no times."""
    lines = [(f"u{n}", f"i{n % 4}", 1_600_000_000 + n) for n in range(9)]
    old, model = table(tmp_path / "old.csv", lines, "user,item,time"), tmp_path / "model"
    done("train", old, "-o", model, "--model", "popularity", "--set", "window=7d", "-q")
    with refused(BadInput, model, "7d", "train again"):
        done("update", model, old, "-o", tmp_path / "out")


def test_ids_are_of_the_model_s_type(tmp_path: Path) -> None:
    model, numbers = tmp_path / "model", [(str(n), str(n % 3), 1) for n in range(9)]
    old = table(tmp_path / "old.csv", numbers, "user,item,unread")
    done("train", old, "-o", model, "--model", "popularity", "-q")
    text = table(tmp_path / "text.csv", [("7", "A7", 1)], "user,item,unread")
    with refused(BadInput, text, "'item'", "'A7'", "integers"):
        done("update", model, text, "-o", tmp_path / "out")
    values = table(tmp_path / "values.csv", [("7", "2", 1)], "user,item,rating")
    with refused(BadInput, values, "'rating'", "every row counts 1"):
        done("update", model, values, "-o", tmp_path / "out")


def test_a_ceiling_that_is_named_is_enough(trained: Trained, run: Run, tmp_path: Path) -> None:
    header, *lines = trained.interactions.read_text().splitlines()
    new = tmp_path / "new.csv"
    new.write_text("\n".join([header, *(f"9{line}" for line in lines[:300])]) + "\n")
    command = ("apps.recsys", "update", trained.model, new, "-o", tmp_path / "updated", "--json", "--memory")
    refusal = run(*command, "60MiB")
    assert refusal.code == 3 and not (tmp_path / "updated").exists()
    finished = run(*command, refusal.record["smallest_feasible_bytes"])
    assert finished.code == 0, finished.err
    kept(finished.record)
    assert finished.record["results"]["added"]["users"] > 0
