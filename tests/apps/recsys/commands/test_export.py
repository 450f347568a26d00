"""Exported item vectors: their products with users' vectors are the scores, for every kind that has them."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from apps.recsys.models.recommender import Recommender, load_manifest
from common.errors import UsageError
from tests.apps.recsys import in_process
from tests.messages import refused
from tests.promise import kept

Run = Callable[..., Any]
LEARNED = ("--set", "user_vectors=learned", "--set", "prior=0.3", "--set", "validation=0")
KINDS: dict[str, tuple[object, ...]] = {
    "ials": ("--set", "iterations=2"),
    "bpr": ("--set", "iterations=2"),
    "linear": ("--set", "form=spectral", "--set", "degree_power=0.5", "--set", "saturation=1"),
    "embedding with a prior": ("--epochs", 1, *LEARNED, "--table", "int8"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_the_scores(run: Run, dataset: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    """On Last.fm, with names of artists that have commas and quotes."""
    model, data, out = tmp_path / "model", dataset("lastfm"), tmp_path / "out"
    command = ("train", data / "plays.csv", "--items", data / "artists.csv", "-o", model)
    in_process.done(*command, "--model", kind.split()[0], "--factors", 16, *KINDS[kind])
    refusal = run("apps.recsys", "export", model, "-o", out, "--memory", "50MiB", "--json")
    assert refusal.code == 3 and not out.exists()
    smallest = refusal.record["smallest_feasible_bytes"]
    done = run("apps.recsys", "export", model, "-o", out, "--memory", smallest, "--json")
    assert done.code == 0, done.err
    kept(done.record)
    recommender = Recommender(model, load_manifest(model))
    vectors = np.load(out / "item_vectors.npy")
    rows, columns = vectors.shape
    assert vectors.dtype == np.float32 and done.record["results"] == {"items": rows, "factors": columns}
    with (out / "ids.csv").open(encoding="utf-8", newline="") as stream:
        ids = list(csv.DictReader(stream))
    known = pq.read_table(model / "items.parquet").to_pylist()
    assert [(int(row["row"]), int(row["id"]), row["title"]) for row in ids] == [
        (row["row"], row["id"], row["title"]) for row in known
    ]
    for user in (0, 7, 1000):
        items, values = recommender.history.items(user), recommender.history.values(user)
        best = recommender.recommend(items, values, 30)
        assert recommender.factors is not None
        scores = vectors @ recommender.factors.fold_in(items, values)
        np.testing.assert_array_equal(scores[[row for row, _ in best]], np.array([s for _, s in best], np.float32))
        scores[items] = -np.inf
        assert set(np.argsort(-scores, kind="stable")[:30]) == {row for row, _ in best}
    in_process.done("export", model, "-o", out, "--ids", "parquet")
    assert pq.read_table(out / "ids.parquet").to_pylist() == known
    assert {path.name for path in out.iterdir()} == {"item_vectors.npy", "ids.csv", "ids.parquet"}


def test_what_has_no_vectors(dataset: Callable[[str], Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    in_process.done("train", dataset("lastfm") / "plays.csv", "-o", model, "--model", "popularity")
    (tmp_path / "file").write_text("")
    popular = ("popularity", "no item vectors", "ials")
    for folder, facts in (("out", popular), ("file", ("folder",)), ("model", ("model folder",))):
        with refused(UsageError, *facts):
            in_process.done("export", model, "-o", tmp_path / folder)
    assert not (tmp_path / "out").exists()
