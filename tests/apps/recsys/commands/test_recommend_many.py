"""Lists for the users or histories of a file, on MovieLens-1M and Last.fm: the values, the formats, and bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from apps.recsys.models.recommender import Recommender, load_manifest
from common.errors import EXIT_BAD_INPUT, BadInput, UsageError
from tests.apps.recsys import in_process
from tests.machine import wait_until
from tests.messages import continued, refused, says
from tests.promise import kept

Run = Callable[..., Any]
FEW = ("--model", "ials", "--factors", 16, "--set", "iterations=2", "--memory", "300MiB", "-q")


@dataclass(frozen=True)
class Model:
    """A model folder, with its ids and vectors."""

    folder: Path
    users: list[Any]
    items: list[Any]
    recommender: Recommender

    def history(self, user: Any) -> list[int]:
        """Rows of the items of a user."""
        return [int(row) for row in self.recommender.history.items(self.users.index(user))]

    def scores(self, rows: list[int], values: Any = None) -> Any:
        """Scores of all items in float64, for a history of rows."""
        values = np.ones(len(rows), np.float32) if values is None else values
        scorer = self.recommender.factors
        assert scorer is not None
        vector = scorer.fold_in(np.array(rows), values)
        return scorer.item_factors.astype(np.float64) @ vector.astype(np.float64)


def opened(folder: Path) -> Model:
    """The model in a folder."""
    users, items = (pq.read_table(folder / f"{name}.parquet")["id"].to_pylist() for name in ("users", "items"))
    return Model(folder, users, items, Recommender(folder, load_manifest(folder)))


@pytest.fixture(scope="module")
def films(quick: Run, dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Model:
    """MovieLens-1M, 6,040 users and 3,706 items."""
    folder = tmp_path_factory.mktemp("films") / "model"
    done = quick("apps.recsys", "train", dataset("ml-1m") / "ratings.csv.gz", "-o", folder, *FEW)
    assert done.code == 0, done.err
    return opened(folder)


@pytest.fixture(scope="module")
def artists(quick: Run, dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Last.fm, with the artists' names as titles."""
    folder, data = tmp_path_factory.mktemp("artists") / "model", dataset("lastfm")
    done = quick("apps.recsys", "train", data / "plays.csv", "--items", data / "artists.csv", "-o", folder, *FEW)
    assert done.code == 0, done.err
    return opened(folder)


def answer(*words: object) -> list[dict[str, Any]]:
    """The items of an answer, in this process."""
    results, _ = in_process.done(*words, "--json")
    return list(results["items"])


def lists(path: Path) -> dict[Any, list[tuple[Any, float]]]:
    """Items and scores by user or history, in their order."""
    found: dict[Any, list[tuple[Any, float]]] = {}
    for whose, rank, item, score in zip(*pq.read_table(path).to_pydict().values(), strict=True):
        found.setdefault(whose, []).append((item, score))
        assert rank == len(found[whose])
    return found


def test_some_users_get_what_all_users_get(films: Model, run: Run, tmp_path: Path) -> None:
    """Each once and in the file's order; unknown ones get what most users had."""
    command = ("recommend", films.folder, "--memory", "200MiB", "-k", 12)
    in_process.done(*command, "--all-users", "-o", tmp_path / "all.parquet")
    everybody = lists(tmp_path / "all.parquet")
    asked = [films.users[row] for row in np.random.default_rng(3).permutation(len(films.users))[:5000]]
    (tmp_path / "users.txt").write_text("".join(f"{user}\n" for user in [*asked, 987654, asked[7]]))
    done = run("apps.recsys", *command, "--users", tmp_path / "users.txt", "-o", tmp_path / "some.parquet", "--json")
    assert done.code == 0, done.err
    says(done.err, "1 of 5,002 ids", "'987654'", "1 ids stand", "1 of 5,001 users")
    assert done.record["results"] == {"users": 5001, "rows": 5001 * 12, "k": 12, "unknown": 1, "popular": 1}
    kept(done.record)
    some = lists(tmp_path / "some.parquet")
    assert list(some) == [*asked, 987654]
    assert pq.read_schema(tmp_path / "some.parquet").field("user").type == "int64"
    for user in asked:
        assert [item for item, _ in some[user]] == [item for item, _ in everybody[user]]
        np.testing.assert_allclose(*([score for _, score in one[user]] for one in (some, everybody)), rtol=1e-6)
    owners = np.bincount(films.recommender.history.items(0, len(films.users)), minlength=len(films.items))
    most = np.lexsort((np.arange(len(owners)), -owners))[:12]
    assert some[987654] == [(films.items[row], owners[row]) for row in most]
    one, lines = in_process.done("recommend", films.folder, "--user", 987654, "-k", 12, "--json")
    assert [(item["id"], item["score"]) for item in one["items"]] == some[987654]
    says(lines[0], "user '987654'", "not in the model", "popular")


def test_histories_are_ranked_as_one_each(films: Model, run: Run, tmp_path: Path) -> None:
    """Equal to float64 arithmetic and to a single history's answer; unknown items are counted."""
    users = films.users[3:900:3]
    histories = [[films.items[row] for row in films.history(user)] for user in users]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*histories, ["nobody's"], []]))
    (tmp_path / "h.csv").write_text("".join(",".join(map(str, one)) + ",zz\n" for one in histories))
    command = ("apps.recsys", "recommend", films.folder, "-k", 9, "--memory", "200MiB")
    for name, unknown in (("h.jsonl", 1), ("h.csv", len(histories))):
        done = run(*command, "--histories", tmp_path / name, "-o", tmp_path / "l.parquet", "--json")
        assert done.code == 0, done.err
        assert done.record["results"]["unknown"] == unknown
        says(done.err, f"{unknown} of {sum(map(len, histories)) + unknown:,} ids")
        kept(done.record)
        found = lists(tmp_path / "l.parquet")
        for number, user in enumerate(users):
            rows = films.history(user)
            scores = films.scores(rows)
            scores[rows] = -np.inf
            items, ours = zip(*found[number], strict=True)
            np.testing.assert_allclose(ours, np.sort(scores)[::-1][:9], atol=1e-5)
            np.testing.assert_allclose(scores[[films.items.index(item) for item in items]], ours, atol=1e-5)
    assert list(found) == list(range(len(histories)))
    (tmp_path / "one.txt").write_text("".join(f"{item}\n" for item in histories[5][1:]))
    one = run(*command, "--history-file", tmp_path / "one.txt", "--item", histories[5][0], "--json")
    assert [item["id"] for item in one.record["results"]["items"]] == [item for item, _ in found[5]]
    kept(one.record)


def test_seen_items_are_kept_where_that_is_asked(artists: Model, tmp_path: Path) -> None:
    user = artists.users[40]
    rows, values = artists.history(user), artists.recommender.history.values(40)
    scores = artists.scores(rows, values)
    best = [artists.items[row] for row in np.argsort(-scores, kind="stable")[:20]]
    assert {artists.items[row] for row in rows} & set(best)  # or this shows nothing
    command = ("recommend", artists.folder, "-k", 20, "--keep-seen")
    one = answer(*command, "--user", user)
    assert [item["id"] for item in one] == best
    titles = dict(zip(*pq.read_table(artists.folder / "items.parquet").select(["id", "title"]), strict=True))
    assert [item["title"] for item in one] == [next(str(t) for i, t in titles.items() if i.as_py() == b) for b in best]
    (tmp_path / "u.csv").write_text(f"name,user_id\nx,{user}\n")
    for whose in (("--all-users",), ("--users", tmp_path / "u.csv")):
        in_process.done(*command, *whose, "-o", tmp_path / "l.parquet")
        assert [item for item, _ in lists(tmp_path / "l.parquet")[user]] == best
    without = answer("recommend", artists.folder, "-k", 20, "--user", user)
    assert not {item["id"] for item in without} & {artists.items[row] for row in rows}
    assert answer("similar", artists.folder, "--item", best[0], "-k", 1)[0]["title"]


def test_candidates_are_ranked_and_nothing_else(artists: Model, tmp_path: Path) -> None:
    user = artists.users[40]
    rows, values = artists.history(user), artists.recommender.history.values(40)
    chosen = [*rows[:3], *range(0, 3000, 100)]
    scores = artists.scores(rows, values)
    right = [artists.items[row] for row in sorted(set(chosen), key=lambda row: (-scores[row], row))]
    (tmp_path / "c.txt").write_text("".join(f"{artists.items[row]}\n" for row in [*chosen, chosen[0]]) + "zz\n")
    command = ("recommend", artists.folder, "--candidates", tmp_path / "c.txt")
    results, lines = in_process.done(*command, "--user", user, "--json")
    found = results["items"]
    assert [item["id"] for item in found] == right
    np.testing.assert_allclose([item["score"] for item in found], np.sort(scores[list(set(chosen))])[::-1], atol=1e-5)
    says(lines[0], "--candidates", f"1 of {len(right) + 1}", "'zz'")
    in_process.done(*command, "--all-users", "-o", tmp_path / "l.parquet")
    assert [item for item, _ in lists(tmp_path / "l.parquet")[user]] == right
    assert [item["id"] for item in answer(*command, "--user", user, "-k", 2)] == right[:2]


@pytest.mark.parametrize("kind", ["linear", "bpr"])
def test_every_kind_answers_for_many_as_for_one(
    run: Run, quick: Run, dataset: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """Also a filter, whose scores are no products of vectors."""
    model, settings = tmp_path / "model", {"linear": ("form=filter", "degree_power=0.3", "saturation=1")}.get(kind, ())
    words = [word for setting in settings for word in ("--set", setting)]
    options = ("--model", kind, "--factors", 16, *words, "-q")
    done = quick("apps.recsys", "train", dataset("lastfm") / "plays.csv", "-o", model, *options)
    assert done.code == 0, done.err
    made = opened(model)
    users = made.users[10:400:97]
    (tmp_path / "u.txt").write_text("".join(f"{user}\n" for user in users) + "0\n")
    (tmp_path / "c.txt").write_text("".join(f"{item}\n" for item in made.items[::50]))
    for limits in (("-k", 5), ("-k", 5, "--keep-seen"), ("--candidates", tmp_path / "c.txt")):
        out = tmp_path / "l.parquet"
        words = ("recommend", model, "--users", tmp_path / "u.txt", "-o", out, *limits)
        if limits == ("-k", 5):
            done = run("apps.recsys", *words, "--json")
            assert done.code == 0, done.err
            kept(done.record)
        else:
            in_process.done(*words)
        many = lists(out)
        assert list(many) == [*users, 0]
        for user in users[:2]:
            one = answer("recommend", model, "--user", user, *limits)
            items, scores = zip(*many[user], strict=True)
            np.testing.assert_allclose([item["score"] for item in one], scores, atol=1e-5)
            assert {item["id"] for item in one} == set(items)
    assert len(many[users[0]]) == len(made.items[::50])


def test_formats_hold_the_same(artists: Model, tmp_path: Path) -> None:
    (tmp_path / "u.txt").write_text("".join(f"{user}\n" for user in artists.users[:700]) + 'a "b", c\n')
    for suffix in ("parquet", "csv", "jsonl"):
        words = ("-k", 7, "--users", tmp_path / "u.txt", "-o", tmp_path / f"l.{suffix}")
        in_process.done("recommend", artists.folder, *words)
    right = pq.read_table(tmp_path / "l.parquet").to_pylist()
    assert len(right) == 701 * 7 and right[-1]["user"] == 'a "b", c' and right[0]["user"] == str(artists.users[0])
    with (tmp_path / "l.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [{**row, "rank": int(row["rank"]), "item": int(row["item"])} for row in rows] == [
        {**row, "score": str(float(f"{row['score']:.9g}"))} for row in right
    ]
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == [{**row, "score": float(f"{row['score']:.9g}")} for row in right]


def test_a_killed_run_continues(films: Model, run: Run, tmp_path: Path) -> None:
    """And not with another file's parts."""
    (tmp_path / "u.txt").write_text("".join(f"{user}\n" for user in films.users[::-1]))
    out = tmp_path / "l.csv"
    arguments = ("recommend", films.folder, "--users", tmp_path / "u.txt", "-o", out, "-k", 150, "--threads", 1)
    command = [sys.executable, "-m", "apps.recsys", *map(str, arguments), "-q"]
    with subprocess.Popen(command, start_new_session=True) as process:
        wait_until(lambda: len(list(tmp_path.glob(".l.csv.parts/users-*"))) > 2, seconds=120, alive=process)
        os.killpg(process.pid, signal.SIGKILL)
    assert not out.exists()
    done = run("apps.recsys", *arguments, "--memory", "250MiB", "--json")
    assert done.code == 0, done.err
    continued(done.err)
    kept(done.record)
    assert {path.name for path in tmp_path.iterdir()} == {"u.txt", "l.csv", "l.run.json"}
    with out.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))[1:]
    assert list(dict.fromkeys(int(row[0]) for row in rows)) == films.users[::-1]
    for user in films.users[:: len(films.users) // 7]:
        row = films.users.index(user)
        scores = films.scores(films.history(user), films.recommender.history.values(row))
        scores[films.history(user)] = -np.inf
        ours = [float(one[3]) for one in rows if int(one[0]) == user]
        np.testing.assert_allclose(ours, np.sort(scores)[::-1][:150], atol=1e-5)


def test_what_cannot_be_answered(artists: Model, quick: Run, tmp_path: Path) -> None:
    """The first from the command line, as one line."""
    (tmp_path / "u.txt").write_text(f"{artists.users[0]}\nnobody\n")
    (tmp_path / "h.txt").write_text(f"{artists.items[0]},nothing\n")
    (tmp_path / "none.txt").write_text("\n \n")
    out = tmp_path / "l.parquet"
    first = ("--users", tmp_path / "u.txt", "-o", out, "--strict")
    done = quick("apps.recsys", "recommend", artists.folder, *first)
    assert (done.code, done.out, done.err.count("\n")) == (4, "", 1), done.err
    says(done.err, "--users", "1 of 2", "'nobody'")
    for options, code, facts in (
        (first, 4, ("--users", "1 of 2", "'nobody'")),
        (("--histories", tmp_path / "h.txt", "-o", out, "--strict"), 4, ("--histories", "1 of 2", "'nothing'")),
        (("--history-file", tmp_path / "u.txt", "--strict"), 4, ("history", "'nobody'")),
        (("--user", "nobody", "--strict"), 4, ("user 'nobody'",)),
        (("--user", artists.users[0], "--exclude", "x", "--strict"), 4, ("--exclude", "'x'")),
        (("--user", artists.users[0], "--candidates", tmp_path / "none.txt"), 4, ("--candidates", "no id")),
        (("--users", tmp_path / "none.txt", "-o", out), 4, ("none.txt", "no id")),
        (("--histories", tmp_path / "none.txt", "-o", out), 4, ("none.txt", "no history")),
        (("--users", tmp_path / "absent.txt", "-o", out), 4, ("absent.txt", "no such file")),
        (("--users", tmp_path / "u.txt"), 2, ("--users", "-o FILE")),
        (("--users", tmp_path / "u.txt", "-o", out, "--item", "1"), 2, ("name one of", "--histories FILE")),
        (("--user", "1", "--history", "2"), 2, ("name one of",)),
        ((), 2, ("name one of", "--history-file FILE")),
        (("--user", "1", "--candidates", "x", "--only", "2"), 2, ("--candidates", "--only")),
        (("--users", tmp_path / "u.txt", "-o", tmp_path / "l.xlsx"), 2, (".csv", ".jsonl", ".parquet")),
    ):
        with refused(BadInput if code == EXIT_BAD_INPUT else UsageError, *facts) as caught:
            in_process.done("recommend", artists.folder, *options)
        assert "\n" not in str(caught.value)
    assert not out.exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_long_file_is_priced(artists: Model, run: Run, tmp_path: Path) -> None:
    """A history of 20,000 unknown ids, and 50,000 users, under the ceiling that a refusal names."""
    (tmp_path / "h.jsonl").write_text(json.dumps([f"item {n}" for n in range(20_000)] + artists.items[:9000]) + "\n")
    (tmp_path / "u.txt").write_text("".join(f"{n}\n" for n in range(50_000)))
    for option, name in (("--histories", "h.jsonl"), ("--users", "u.txt")):
        command = ("apps.recsys", "recommend", artists.folder, option, tmp_path / name, "-o", tmp_path / "l.jsonl")
        refusal = run(*command, "--memory", "64MiB", "--json")
        assert refusal.code == 3, refusal.err
        done = run(*command, "--memory", refusal.record["smallest_feasible_bytes"], "--json", timeout=600)
        assert done.code == 0, done.err
        kept(done.record)
