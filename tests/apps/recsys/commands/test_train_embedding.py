"""``recsys train --model embedding`` from the command line: what it writes, promises and refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.compression.layouts import layout
from common.errors import BadInput, UsageError
from tests.apps.recsys import in_process
from tests.apps.recsys.conftest import Trained
from tests.messages import refused, says
from tests.precision import AVX2
from tests.promise import predicted_closely
from tests.schemas import read_manifest

Run = Callable[..., Any]
SMALL = ("--model", "embedding", "--factors", 16, "--set", "batch=64", "--set", "negatives=64")


def test_train_evaluate_recommend(trained: Trained, run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    options = ("--epochs", 4, "--table", "int8", "--split", "user-holdout", "--memory", "600MiB", "--json")
    done = run("apps.recsys", "train", trained.interactions, "--items", trained.titles, "-o", model, *SMALL, *options)
    assert done.code == 0, done.err
    says(done.err, "ndcg@10", "epoch")
    predicted_closely(done.record)
    manifest = read_manifest(model)
    assert (manifest["kind"], manifest["table"], manifest["cosine"]) == ("embedding", "int8", True)
    assert manifest["hyper"]["loss"] == "softmax" and manifest["hyper"]["epochs"] == 4
    assert sorted(path.name for path in model.glob("*valid*")) == [] and not (model / ".training").exists()
    metrics = done.record["results"]["metrics"]
    assert metrics["ndcg@10"] > 0.3  # popularity reaches 0.2
    assert in_process.done("evaluate", model)[0]["metrics"] == pytest.approx(metrics)
    shown, _ = in_process.done("recommend", model, "--history", "0,8,16", "-k", 5, "--json")
    scores = [item["score"] for item in shown["items"]]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True) and all(-1 <= score <= 1 for score in scores)


def test_its_options_are_checked(trained: Trained, tmp_path: Path) -> None:
    command = ("train", trained.interactions, "-o", tmp_path / "model")
    for options, facts in (
        (("--loss", "ccl"), ("--loss", "--model embedding")),
        (("--model", "embedding", "--set", "tables=3"), ("tables", 1, 2)),
        (("--model", "embedding", "--table", "int4", "--factors", 3), ("--factors 3", "4 bits")),
        (("--model", "embedding", "--set", "alpha=1"), ("--set alpha=1", "--model ials")),
        (("--model", "embedding", "--set", "rate=1"), ("--set", "rate", "learning_rate")),
        (("--model", "embedding", "--table", "hash", "--set", "row_bytes=0"), ("row_bytes", 1)),
        ((*SMALL, "--table", "int8", "--memory", "600MiB", "--resume"), (tmp_path / "model", "resume")),
    ):
        with refused(BadInput if "--resume" in options else UsageError, *facts):
            in_process.done(*command, *options)
        assert not (tmp_path / "model").exists()


def test_bfloat16_is_refused_where_the_cpu_lacks_it(trained: Trained, run: Run, tmp_path: Path) -> None:
    command = ("apps.recsys", "train", trained.interactions, "-o", tmp_path / "model", *SMALL)
    done = run(*command, "--amp", "bf16", env=AVX2)
    assert done.code == 2 and len(done.err.splitlines()) == 1
    says(done.err, "--amp bf16", "off")
    assert not (tmp_path / "model").exists()


def test_a_plan_has_its_knobs(trained: Trained, quick: Run, tmp_path: Path) -> None:
    command = ("apps.recsys", "train", trained.interactions, "-o", tmp_path / "model", *SMALL, "--dry-run", "--json")
    plan = quick(*command, "--micro-batch", 16).record["plan"]
    assert plan["knobs"] == {"accumulate": 4, "amp": "off", "micro_batch": 16, "user_block": 256}
    terms = {term["name"]: term["bytes"] for term in plan["terms"]}
    assert (terms["tables"], terms["optimizer state"]) == (200 * 16 * 4, 200 * 4)


def test_a_made_table_is_as_large_as_planned_and_the_same_each_time(trained: Trained, run: Run, tmp_path: Path) -> None:
    made = layout("pq", rows=200, width=16, row_bytes=60)
    options = ("--epochs", 3, "--table", "pq", "--set", "row_bytes=60", "--memory", "600MiB", "--threads", 1, "--json")
    found = []
    for name in ("one", "other"):
        model = tmp_path / name
        done = run("apps.recsys", "train", trained.interactions, "-o", model, *SMALL, *options)
        assert done.code == 0, done.err
        predicted_closely(done.record)
        terms = {term["name"]: term["bytes"] for term in done.record["plan"]["terms"]}
        assert (terms["tables"], terms["optimizer state"]) == (made.weights, made.optimizer)
        found.append((model / "weights.safetensors").read_bytes())
    assert found[0] == found[1]
    assert len(in_process.done("recommend", model, "--history", "0,8,16", "-k", 5, "--json")[0]["items"]) == 5
