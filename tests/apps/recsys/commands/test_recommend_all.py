"""The best items of every user: exactly, in a few blocks, as one file, and again after a kill."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from apps.recsys.commands import recommend_all
from apps.recsys.data.csr_store import History
from apps.recsys.models import catalogue_search, recommender, weights
from apps.recsys.models.als.confidence import confidence as confidence_of
from apps.recsys.models.catalogue_search import Catalogue
from apps.recsys.planning.questions.recommend_requests import RecommendAllRequest
from apps.recsys.planning.recommend_all import RecommendAllWorkload
from common.errors import BadInput, UsageError
from common.memory.process.budget import MIB
from tests.apps.recsys import in_process
from tests.apps.recsys.conftest import Trained
from tests.machine import wait_until
from tests.messages import continued, refused
from tests.promise import kept

Run = Callable[..., Any]


def naive(vectors: NDArray[Any], user: NDArray[Any], hidden: NDArray[Any], k: int) -> list[int]:
    """Every score in float64, sorted whole; the lower row first of equal ones."""
    scores = vectors.astype(np.float64) @ user.astype(np.float64)
    scores[hidden] = -np.inf
    order = np.lexsort((np.arange(len(scores)), -scores))[:k]
    return [int(row) for row in order if scores[row] > -np.inf]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), integers=st.booleans())
def test_the_best_are_those_of_a_full_sort(data: st.DataObject, integers: bool) -> None:
    items, users, width = (data.draw(st.integers(1, most)) for most in (90, 6, 4))
    k = data.draw(st.integers(1, 12))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    made = [random.integers(-2, 3, (n, width)) if integers else random.normal(size=(n, width)) for n in (items, users)]
    vectors, people = (part.astype(np.float32) for part in made)
    vectors *= np.float32(2.0) ** random.integers(-3, 4, (items, 1))  # lengths differ, products stay exact
    seen = [random.permutation(items)[: random.integers(0, items + 1)] for _ in range(users)]
    allowed = random.random(items) < 0.7 if data.draw(st.booleans()) else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue_search, "TILE", data.draw(st.integers(1, 40)))
        catalogue = Catalogue(vectors, allowed)
        pairs = np.repeat(np.arange(users), [len(part) for part in seen]), np.concatenate(seen)
        rows, scores = catalogue.best(people, pairs, k)
    for user in range(users):
        hidden = np.concatenate([seen[user], np.flatnonzero(~allowed)]) if allowed is not None else seen[user]
        right = naive(vectors, people[user], hidden.astype(int), k)
        assert rows[user].tolist() == right + [-1] * (k - len(right))
        exact = vectors[right].astype(np.float64) @ people[user].astype(np.float64)
        np.testing.assert_allclose(scores[user, : len(right)], exact, rtol=1e-12)
        assert np.isneginf(scores[user, len(right) :]).all()


def test_most_items_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    lengths = 1 / np.arange(1, 40_001)
    vectors = (random.normal(size=(40_000, 16)) * lengths[random.permutation(40_000), None]).astype(np.float32)
    looked = []
    take = catalogue_search._Candidates.add
    monkeypatch.setattr(
        catalogue_search._Candidates, "add", lambda self, *what: (looked.append(what[2]), take(self, *what))
    )
    rows, _ = Catalogue(vectors).best(vectors[:5], (np.zeros(0, np.int64), np.zeros(0, np.int32)), 10)
    assert sum(map(len, looked)) < 10_000
    assert [row.tolist() for row in rows] == [naive(vectors, user, np.zeros(0, int), 10) for user in vectors[:5]]


def answers(path: Path) -> dict[Any, list[Any]]:
    """Items by user, in order."""
    found: dict[Any, list[Any]] = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["user"], []).append(row["item"])
        assert row["rank"] == len(found[row["user"]])
    return found


def test_all_users_get_what_each_would_get(trained: Trained, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "all.parquet"
    limits = ("--exclude", "3,8", "-k", 5)
    done = run("apps.recsys", "recommend", trained.model, "--all-users", "-o", out, *limits, "--json")
    assert done.code == 0, done.err
    found = answers(out)
    assert len(found) == 300 == done.record["results"]["users"]
    assert done.record["within_budget"] and (tmp_path / "all.run.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"all.parquet", "all.run.json"}
    for user in ("u00003", "u00121"):
        one, _ = in_process.done("recommend", trained.model, "--user", user, *limits, "--json")
        assert [item["id"] for item in one["items"]] == found[user]
    in_process.done("recommend", trained.model, "--all-users", "-o", out, "--only", "3,8,12")
    assert {item for items in answers(out).values() for item in items} <= {3, 8, 12}


def test_its_options_are_checked(trained: Trained, tmp_path: Path) -> None:
    for options, code, facts in (
        (("--all-users",), 2, ("--all-users", "-o FILE")),
        (("--all-users", "-o", tmp_path), 2, (tmp_path, "folder")),
        (("--user", "u00003", "-o", tmp_path / "x"), 2, ("-o", "--all-users")),
        (("--all-users", "-o", tmp_path / "x.parquet", "--only", "nothing"), 4, ("item", "'nothing'")),
    ):
        with refused(BadInput if code == 4 else UsageError, *facts) as caught:
            in_process.done("recommend", trained.model, *options)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.parquet").exists()


@pytest.fixture(scope="module")
def epinions(dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Epinions: 139,738 items."""
    folder = tmp_path_factory.mktemp("epinions") / "model"
    options = ("--model", "ials", "--factors", 64, "--set", "iterations=1", "--set", "weight=binary")
    in_process.done("train", dataset("epinions") / "train.txt", "-o", folder, *options)
    return folder


def test_a_large_catalogue_in_little_memory(run: Run, epinions: Path, tmp_path: Path) -> None:
    """Killed, continued, at most 64 MiB above the model, equal to the float64 ranking."""
    out = tmp_path / "all.parquet"
    arguments = ("recommend", epinions, "--all-users", "-o", out, "-k", 20, "--memory", "400MiB", "--threads", 2)
    command = [sys.executable, "-m", "apps.recsys", *map(str, arguments), "-q"]
    with subprocess.Popen(command, start_new_session=True) as process:
        wait_until(lambda: bool(list(tmp_path.glob(".all.parquet.parts/users-*.parquet"))), seconds=120, alive=process)
        os.killpg(process.pid, signal.SIGKILL)
    assert not out.exists()
    done = run("apps.recsys", *arguments, "--json")
    assert done.code == 0, done.err
    continued(done.err)
    manifest = recommender.load_manifest(epinions)
    own = 4 * 64 * manifest["items"] + 8 * (manifest["users"] + 1)
    measured = done.record["measured"]
    assert measured["peak_bytes"] - measured["floor_bytes"] - own <= 64 * MIB
    kept(done.record)
    # Long lists are written in smaller parts: they need no more.
    long = run("apps.recsys", *arguments, "-k", 1000, "--dry-run", "--json").record["plan"]
    assert long["predicted_peak_bytes"] <= done.record["plan"]["predicted_peak_bytes"] + 4 * MIB

    table = pq.read_table(out)
    users, items = (pq.read_table(epinions / f"{name}s.parquet")["id"].to_numpy() for name in ("user", "item"))
    assert table.num_rows == done.record["results"]["rows"] == 20 * len(users)
    row_of = {id_: row for row, id_ in enumerate(items)}
    factors = weights.read(epinions / weights.WEIGHTS).astype(np.float64)
    hyper, history = manifest["hyper"], History(epinions)
    shared = factors.T @ factors + hyper["regularization"] * np.eye(64)
    for user in range(0, len(users), 401):
        lines = table.slice(20 * user, 20).to_pydict()
        assert set(lines["user"]) == {users[user]}
        known, confidence = history.items(user), confidence_of(history.values(user), hyper).astype(np.float64)
        rows = factors[known]
        vector = np.linalg.solve(shared + rows.T @ (rows * (confidence - 1)[:, None]), confidence @ rows)
        scores = factors @ vector
        scores[known] = -np.inf
        ours = [row_of[id_] for id_ in lines["item"]]
        assert not set(ours) & set(known.tolist())
        np.testing.assert_allclose(scores[ours], np.sort(scores)[::-1][:20], atol=1e-6)
        np.testing.assert_allclose(lines["score"], scores[ours], atol=1e-6)


def test_parts_of_another_answer_are_not_taken_up(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    parts = tmp_path / "parts"

    def work(**limits: Any) -> RecommendAllWorkload:
        request = RecommendAllRequest(model=tmp_path, output=tmp_path / "lists.parquet", threads=1, **limits)
        return RecommendAllWorkload(request, {})  # type: ignore[typeddict-item]

    assert recommend_all._continue(parts, work(k=5)) == 0
    (parts / "users-000000000000.parquet").write_bytes(b"")
    assert recommend_all._continue(parts, work(k=5)) == 1
    for other in (work(k=6), work(k=6, exclude=("1", "2")), work(k=6, only=("1", "2"))):
        assert recommend_all._continue(parts, other) == 0 and not list(parts.glob("users-*"))
        (parts / "users-000000000000.parquet").write_bytes(b"")
