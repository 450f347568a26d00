"""Explanations: what the items of a history add is the score, to the last digit that counts, and ``implicit``'s too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from implicit.cpu.als import AlternatingLeastSquares

from apps.recsys.models.als import ials
from apps.recsys.models.embedding import user_encoders
from common.errors import BadInput, UsageError
from tests.apps.recsys import in_process
from tests.apps.recsys.conftest import Trained
from tests.messages import refused, says
from tests.promise import kept

Run = Callable[..., Any]
ITEMS, FACTORS = 80, 12
COSINES, PRODUCTS = {"user_vectors": "history", "loss": "softmax"}, {"user_vectors": "history", "loss": "bpr"}


def factors(seed: int) -> Any:
    """Items' vectors."""
    return np.random.default_rng(seed).normal(0, 0.3, (ITEMS, FACTORS)).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    had=st.integers(1, 40),
    model=st.sampled_from(["ials", "ials by frequency", "cosines", "products", "two tables"]),
)
def test_what_the_history_adds_is_the_score(seed: int, had: int, model: str) -> None:
    random, items = np.random.default_rng(seed), factors(seed)
    if model.startswith("ials"):
        hyper = {**ials.HYPER, "alpha": 2.5, "frequency_scaling": 1.0 if "frequency" in model else 0.0}
        encoder = user_encoders.least_squares(items, hyper)
    else:
        taste = factors(seed + 1) if model == "two tables" else None
        encoder = user_encoders.embedding(items, taste, PRODUCTS if model == "products" else COSINES)
    own, values = np.sort(random.choice(ITEMS, had, replace=False)), random.integers(1, 9, had).astype(np.float32)
    assert encoder.contributions is not None
    parts = encoder.contributions(own, values)
    assert parts.shape == (had, FACTORS)
    scores = items.astype(np.float64) @ encoder(own, values)
    np.testing.assert_allclose((items @ parts.T).sum(1), scores, atol=1e-6)


def test_it_is_what_implicit_explains() -> None:
    items, hyper = factors(1), {**ials.HYPER, "weight": "value", "alpha": 1.0, "regularization": 3.0}
    random = np.random.default_rng(2)
    own, values = np.sort(random.choice(ITEMS, 9, replace=False)), random.integers(2, 9, 9).astype(np.float32)
    peer = AlternatingLeastSquares(factors=FACTORS, regularization=3.0)
    peer.item_factors = items
    peer.user_factors = user_encoders.least_squares(items, hyper)(own, values)[None]
    row = scipy.sparse.csr_matrix((values, own, [0, 9]), shape=(1, ITEMS))
    total, most, _ = peer.explain(0, row, 7, N=4)
    encoder = user_encoders.least_squares(items, hyper)
    assert encoder.contributions is not None
    added = encoder.contributions(own, values) @ items[7]
    assert total == pytest.approx(added.sum(), rel=1e-4)
    order = np.argsort(-added)[:4]
    assert [place for place, _ in most] == own[order].tolist()
    np.testing.assert_allclose([share for _, share in most], added[order], rtol=1e-3)


@pytest.fixture(scope="module")
def embedding(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedding whose users are sums."""
    model = tmp_path_factory.mktemp("explained") / "model"
    options = ("--model", "embedding", "--epochs", 2, "--factors", 16, "--set", "validation=0")
    options += ("--set", "batch=64", "--set", "negatives=64")
    in_process.done("train", trained.interactions, "-o", model, *options)
    return model


@pytest.mark.parametrize("kind", ["ials", "embedding"])
def test_on_the_command_line(
    trained: Trained, embedding: Path, run: Run, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained.model if kind == "ials" else embedding
    command = ("recommend", model, "--memory", "250MiB", "-k", 3)
    whole = run("apps.recsys", *command, "--user", "u00003", "--explain", 999, "--json").record
    plain = in_process.done(*command, "--user", "u00003", "--json")[0]["items"]
    assert [(item["id"], item["score"]) for item in plain] == [
        (item["id"], item["score"]) for item in whole["results"]["items"]
    ]
    for item in whole["results"]["items"]:
        added = [had["score"] for had in item["because"]]
        assert len(added) > 1 and added == sorted(added, reverse=True) and item["others"] == 0
        assert sum(added) == pytest.approx(item["score"], abs=1e-6 * len(added))  # each is rounded to six digits
    kept(whole)
    few = in_process.done(*command, "--history", "0,8,16", "--explain", 2, "--json")[0]["items"][0]
    assert {had["id"] for had in few["because"]} < {0, 8, 16}
    assert sum(had["score"] for had in few["because"]) + few["others"] == pytest.approx(few["score"], abs=4e-6)
    in_process.done(*command, "--history", "0,8,16", "--explain", 2)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 7
    says(shown[2], "because", "others")


def test_a_list_that_is_empty_says_why(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("recommend", trained.model, "--history", "0", "--only", "0")
    _, lines = in_process.done(*command)
    assert len(capsys.readouterr().out.splitlines()) == 1
    says("\n".join(lines), "empty", "--keep-seen")
    in_process.done(*command, "--keep-seen")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_where_there_is_no_explanation(trained: Trained, tmp_path: Path) -> None:
    model = tmp_path / "model"
    in_process.done("train", trained.interactions, "-o", model, "--model", "popularity")
    for extra, fact in ((("--user", "u00003"), "popularity"), (("--all-users", "-o", "x"), "one user")):
        with refused(UsageError, fact):
            in_process.done("recommend", model, *extra, "--explain", 3)


def test_an_id_that_no_user_can_have_is_refused(tmp_path: Path) -> None:
    """Where ids are whole numbers, an unknown number is a new user, and a word is a mistake."""
    table = pa.table({"user": [n % 7 for n in range(40)], "item": [n % 9 for n in range(40)]})
    pq.write_table(table, tmp_path / "t.parquet")
    in_process.done("train", tmp_path / "t.parquet", "-o", tmp_path / "model", "--model", "popularity")
    command = ("recommend", tmp_path / "model", "-k", 2, "--user")
    says("\n".join(in_process.done(*command, "123456")[1]), "123456", "not in the model")
    for user in ("nan", "1.5"):
        with refused(BadInput, user, "not in the model"):
            in_process.done(*command, user)
