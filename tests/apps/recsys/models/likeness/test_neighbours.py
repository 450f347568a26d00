"""Users like one: cosines of vectors or of weighted histories, against dense arithmetic, and on the command line."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from apps.recsys.data.csr_store import History, NpyWriter
from apps.recsys.models.likeness import neighbours
from apps.recsys.models.likeness.neighbours import nearest_users
from apps.recsys.models.recommender import Recommender, load_manifest
from apps.recsys.planning.questions.like_users import like_user_terms, require_tastes
from apps.recsys.serving.service import RecommenderService, UnknownId
from common.errors import BadInput, UsageError
from tests.apps.recsys.conftest import Trained
from tests.messages import refused
from tests.promise import kept


def model(folder: Path, dense: Any, **parts: Any) -> Any:
    """What ``nearest_users`` asks of a model, with a matrix of users and items as its history."""
    columns = {
        "indptr": ("<i8", np.concatenate([[0], np.cumsum(dense.sum(1))])),
        "items": ("<i4", np.nonzero(dense)[1]),
    }
    columns["values"] = ("<f4", np.ones(int(dense.sum())))
    for name, (kind, values) in columns.items():
        with NpyWriter(folder / f"history.{name}.npy", kind) as writer:
            writer.append(values)
    return SimpleNamespace(history=History(folder), scorer=SimpleNamespace(items=dense.shape[1]), **parts)


def dense(users: int = 40, items: int = 12) -> Any:
    """A history in which the users 5 and 9 are equal, and the last one has nothing."""
    matrix = (np.random.default_rng(3).random((users, items)) < 0.3).astype(np.int64)
    matrix[:, 0] |= matrix.sum(1) == 0
    matrix[9], matrix[-1] = matrix[5], 0
    return matrix


@pytest.mark.parametrize("block", [1, 17, 1 << 15])
def test_a_filter_compares_histories(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    matrix = dense()
    weighted = matrix / np.sqrt(np.maximum(matrix.sum(0), 1))
    unit = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-9)
    found = nearest_users(model(tmp_path, matrix, factors=None, manifest={}), 5, 7)
    cosines = unit @ unit[5]
    cosines[5] = -1
    assert found[0] == (9, pytest.approx(1)) and 5 not in [user for user, _ in found]
    np.testing.assert_allclose([cosine for _, cosine in found], np.sort(cosines)[::-1][:7], atol=1e-6)
    np.testing.assert_allclose([cosines[user] for user, _ in found], [cosine for _, cosine in found], atol=1e-6)
    everybody = nearest_users(model(tmp_path, matrix, factors=None, manifest={}), 5, 100)
    assert len(everybody) == 39 and dict(everybody)[39] == 0


@pytest.mark.parametrize(
    ("manifest", "columns"), [({"kind": "ials", "hyper": {}}, 4), ({"kind": "bpr", "hyper": {}}, 3)]
)
def test_vectors_are_compared_without_what_all_users_share(tmp_path: Path, manifest: Any, columns: int) -> None:
    """The last number of a user of ``bpr`` is always 1; the number of threads changes nothing."""
    matrix, items = dense(), np.random.default_rng(1).normal(size=(12, 4))
    items[:, -1] = 1

    def fold_in(rows: Any, values: Any) -> Any:
        vector = items[rows].mean(0).astype(np.float32)
        return vector

    vectors = (matrix / np.maximum(matrix.sum(1, keepdims=True), 1) @ items)[:, :columns]
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    made, counted = model(tmp_path, matrix, factors=SimpleNamespace(fold_in=fold_in), manifest=manifest), []
    found = nearest_users(made, 2, 6, threads=1, done=counted.append)
    cosines = unit @ unit[2]
    cosines[2] = -1
    np.testing.assert_allclose([cosine for _, cosine in found], np.sort(cosines)[::-1][:6], atol=1e-6)
    assert found == nearest_users(made, 2, 6, threads=3) and sum(counted) == 40


def test_a_thread_that_fails_is_heard(tmp_path: Path) -> None:
    def fold_in(rows: Any, values: Any) -> Any:
        if len(rows) == 1:
            raise BadInput("damaged", public="damaged")
        return np.ones(2, np.float32)

    matrix = dense()
    matrix[7] = [1] + [0] * 11
    made = model(tmp_path, matrix, factors=SimpleNamespace(fold_in=fold_in), manifest={"kind": "ials", "hyper": {}})
    with refused(BadInput, "damaged"):
        nearest_users(made, int(matrix.sum(1).argmax()), 3, threads=2)
    with refused(BadInput, "no item"):
        nearest_users(made, 39, 3)


def test_on_the_command_line(trained: Trained, run: Callable[..., Any]) -> None:
    """Users of the sample are most like users of their own cluster."""
    done = run("apps.recsys", "similar", trained.model, "--user", "u00003", "-k", 9, "--memory", "250MiB", "--json")
    assert done.code == 0, done.err
    kept(done.record)
    found = done.record["results"]["users"]
    clusters = [int(user["id"][1:]) % 8 for user in found]
    assert len(found) == 9 and clusters.count(3) > 6 and all(user["id"] != "u00003" for user in found)
    manifest = load_manifest(trained.model)
    service = RecommenderService(trained.model, manifest)
    assert service.like_user("u00003", 9, threads=2) == found
    recommender = Recommender(trained.model, manifest)
    assert recommender.factors is not None
    row, other = (service.users.row(id_) for id_ in ("u00003", found[0]["id"]))
    own, theirs = (
        recommender.factors.fold_in(recommender.history.items(user), recommender.history.values(user))
        for user in (int(row or 0), int(other or 0))
    )
    cosine = own @ theirs / np.linalg.norm(own) / np.linalg.norm(theirs)
    assert found[0]["score"] == pytest.approx(float(cosine), abs=2e-6)
    with refused(UnknownId, "'nobody'"):
        service.like_user("nobody", 3)


def test_what_is_priced_and_refused() -> None:
    manifest = {"kind": "ials", "factors": 64, "items": 10**5, "users": 10**6, "interactions": 10**8, "hyper": {}}
    manifest["longest_history"] = 1000
    one, two = (sum(term.bytes for term in like_user_terms(manifest, threads=threads)) for threads in (1, 2))
    assert 12 * 10**6 < one < two < 20 << 20
    with refused(UsageError, "--user", "popularity"):
        require_tastes({"kind": "popularity"})
