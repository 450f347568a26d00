"""EASE, and a spectrum as codes, from the command line: trained, evaluated, asked, and refused where damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.data.csr_store import History
from apps.recsys.models import weights
from apps.recsys.models.linear import ease, options
from apps.recsys.models.linear.coded import read_codes
from apps.recsys.models.recommender import Recommender, load_manifest
from apps.recsys.training import fit_ease
from common.errors import BadInput, UsageError
from tests.apps.recsys.conftest import Trained
from tests.apps.recsys.in_process import done
from tests.promise import kept

Run = Callable[..., Any]


def train(trained: Trained, run: Run, model: Path, *given: object) -> dict[str, Any]:
    """Train a linear model on the sample with a part held out; returns the record."""
    command = ("apps.recsys", "train", trained.interactions, "-o", model, "--model", "linear", "--split", "random")
    ended = run(*command, *given, "--memory", "250MiB", "--json")
    assert ended.code == 0, ended.err
    kept(ended.record)
    record: dict[str, Any] = ended.record
    return record


def test_ease(trained: Trained, run: Run, tmp_path: Path) -> None:
    """The ridge is chosen on hidden items; scores are the formula's on what the split left."""
    model = tmp_path / "model"
    record = train(trained, run, model, "--set", "form=ease")
    tried, manifest = record["results"]["tried"], load_manifest(model)
    ridge = manifest["hyper"]["ridge"]
    assert len(tried) == 7 and ridge == tried[0]["ridge"] and tried[0]["ndcg@20"] >= tried[-1]["ndcg@20"]
    assert 0 < record["results"]["metrics"]["ndcg@20"] < 1 and manifest["factors"] == 0
    items, left = manifest["items"], History(model, "trained")
    assert (model / ease.FILE).stat().st_size == 128 + 4 * items * items
    dense = np.zeros((left.rows, items))
    for user in range(left.rows):
        dense[user, left.items(user)] = 1
    inverse = np.linalg.inv(dense.T @ dense + float(ridge) * np.eye(items))
    formula = -inverse / np.diag(inverse)
    np.fill_diagonal(formula, 0)
    recommender, had = Recommender(model, manifest), left.items(3)
    found = recommender.recommend(had, np.ones(len(had), np.float32), 5, keep_seen=True)
    scores = formula[had].sum(0)
    assert [row for row, _ in found] == list(np.argsort(-scores, kind="stable")[:5])
    np.testing.assert_allclose([score for _, score in found], np.sort(scores)[::-1][:5], atol=1e-4)
    parts = recommender.explain(had, np.ones(len(had), np.float32), np.array([7]))
    np.testing.assert_allclose(parts.sum(), scores[7], atol=1e-4)
    assert all(row != 2 and -1 <= score <= 1 for row, score in recommender.similar(2, 4))
    path = model / ease.FILE
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BadInput, match="ease"):
        load_manifest(model)


def test_ease_is_a_candidate_where_it_fits(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is chosen if it is better by what its bytes must be worth, and a line says why it is not tried."""
    model = tmp_path / "model"
    command = ("train", trained.interactions, "-o", model, "--model", "linear", "--memory", "1GiB")
    for worth, forms in ((1e-3, {"ease"}), (1e3, {"filter", "spectral"})):
        monkeypatch.setattr(fit_ease, "WORTH", worth)
        results, _ = done(*command)
        assert {one["form"] for one in results["tried"]} == {"filter", "spectral", "ease"}
        assert load_manifest(model)["hyper"]["form"] in forms and (model / ease.FILE).exists() == (forms == {"ease"})
    for module in (options, fit_ease):
        monkeypatch.setattr(module, "EASE_ITEMS", 100)
    results, lines = done(*command)
    assert "ease" not in {one["form"] for one in results["tried"]}
    (line,) = (line for line in lines if line.startswith("form=ease is not tried"))
    assert f"{load_manifest(model)['items']} items" in line and "up to 100" in line


def test_a_spectrum_in_two_bits(trained: Trained, run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    fixed = ("--set", "form=spectral", "--set", "degree_power=0.3", "--set", "saturation=0.1", "--factors", 30)
    train(trained, run, model, *fixed, "--set", "bits=2")
    manifest = load_manifest(model)
    assert manifest["hyper"]["bits"] == 2 and manifest["factors"] == 30
    codes = read_codes(model / weights.WEIGHTS, factors=30, bits=2)
    assert codes.packed.shape == (manifest["items"], 8) and codes.scales.dtype == np.float16
    recommender = Recommender(model, manifest)
    items = recommender.history.items(1)
    found = recommender.recommend(items, np.ones(len(items), np.float32), 8)
    parts = recommender.explain(items, np.ones(len(items), np.float32), np.array([row for row, _ in found]))
    np.testing.assert_allclose(parts.sum(1), [score for _, score in found], rtol=1e-4)
    vectors = recommender.item_vectors
    assert vectors is not None and vectors.shape == (manifest["items"], 30)
    for bits in (32, 4):
        changed = {**manifest, "hyper": {**manifest["hyper"], "bits": bits}}
        (model / "model.json").write_text(json.dumps(changed))
        with pytest.raises(BadInput, match="spectrum"):
            load_manifest(model)
    (model / "model.json").write_text(json.dumps({**manifest, "hyper": {**manifest["hyper"], "bits": 3}}))
    with pytest.raises(BadInput, match="bits"):
        load_manifest(model)


@pytest.mark.parametrize(
    ("form", "changed", "factors", "named"),
    [
        ("ease", {}, 8, "--factors 8"),
        ("ease", {"bits": 2}, 0, "bits"),
        ("ease", {"ridge": "0"}, 0, "ridge"),
        ("ease", {"degree_power": "0.3"}, 0, "degree_power"),
        ("filter", {"ridge": "3"}, 0, "ridge"),
        ("spectral", {"bits": 3}, 8, "bits=3: expected 32, 8, 4, 2 or 1"),
    ],
)
def test_settings_of_other_forms_are_refused(form: str, changed: dict[str, Any], factors: int, named: str) -> None:
    from apps.recsys.models.linear.options import HYPER, checked

    with pytest.raises(UsageError) as refused:
        checked({**HYPER, "form": form, **changed}, factors)
    assert named in str(refused.value)
