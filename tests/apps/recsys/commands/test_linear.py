"""``--model linear`` from the command line: chosen on hidden items, evaluated, asked, and refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from apps.recsys.models import weights
from apps.recsys.models.linear.options import WORTH
from common.errors import BadInput, UsageError
from tests.apps.recsys import in_process
from tests.apps.recsys.conftest import Trained
from tests.messages import refused, says
from tests.promise import kept
from tests.schemas import read_manifest

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def plays(dataset: Callable[[str], Path]) -> Path:
    """Last.fm's plays: 1,892 users, 17,632 artists."""
    return dataset("lastfm") / "plays.csv"


def test_settings_are_chosen_on_hidden_items(trained: Trained, run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    command = (
        "apps.recsys",
        "train",
        trained.interactions,
        "--items",
        trained.titles,
        "-o",
        model,
        "--model",
        "linear",
    )
    done = run(*command, "--split", "user-holdout", "--memory", "250MiB", "--json")
    assert done.code == 0, done.err
    kept(done.record)
    manifest, tried = read_manifest(model), done.record["results"]["tried"]
    best = max(tried, key=lambda one: one["ndcg@20"] / (WORTH if one["form"] == "ease" else 1))
    chosen = {name: value for name, value in best.items() if name not in ("factors", "ndcg@20")}
    assert manifest["hyper"] == {**chosen, "bits": 32}
    assert [one["ndcg@20"] for one in tried] == sorted((one["ndcg@20"] for one in tried), reverse=True)
    assert {one["form"] for one in tried} == {"filter", "spectral", "ease"} and len(tried) > 50
    says(done.err, "hidden", manifest["hyper"]["form"], f"{manifest['hyper']['degree_power']:g}")
    metrics = done.record["results"]["metrics"]
    assert metrics["ndcg@10"] > trained.record["results"]["metrics"]["ndcg@10"] * 0.9
    again = run("apps.recsys", "evaluate", model, "--memory", "200MiB", "--json").record
    assert again["results"]["metrics"] == pytest.approx(metrics, rel=1e-6)
    kept(again)
    assert not list(model.glob("sampled.*")) and not list(model.glob("validation.*"))


@pytest.mark.parametrize("form", ["filter", "spectral"])
def test_it_answers_on_real_data(plays: Path, run: Run, tmp_path: Path, form: str) -> None:
    """With settings that are given: lists, explanations that sum to the score, similar artists, all users."""
    model, ceiling = tmp_path / "model", ("--memory", "300MiB", "--json")
    given = ("--set", f"form={form}", "--set", "degree_power=0.2", "--set", "saturation=1", "--factors", 64)
    done = run("apps.recsys", "train", plays, "-o", model, "--model", "linear", *given, *ceiling)
    assert done.code == 0, done.err
    kept(done.record)
    assert done.record["results"]["tried"] == []
    counts = weights.read_counts(model / weights.WEIGHTS)
    assert counts.sum() == 92_834 and len(counts) == 17_632
    vectors, eigenvalues = weights.read_spectrum(model / weights.WEIGHTS)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(64), atol=1e-3)
    assert (np.diff(eigenvalues) <= 0).all() and eigenvalues[0] == pytest.approx(1, abs=5e-3)

    asked = run("apps.recsys", "recommend", model, "--user", 2, "-k", 20, "--explain", 50, *ceiling).record
    kept(asked)
    for item in asked["results"]["items"]:
        total = sum(had["score"] for had in item["because"]) + item["others"]
        assert total == pytest.approx(item["score"], abs=2e-5)
    lists = run("apps.recsys", "recommend", model, "--all-users", "-o", tmp_path / "lists.parquet", *ceiling).record
    kept(lists)
    table = pq.read_table(tmp_path / "lists.parquet", filters=[("user", "=", 2)]).to_pydict()
    expected = asked["results"]["items"][:10]
    assert table["item"] == [item["id"] for item in expected]
    np.testing.assert_allclose(table["score"], [item["score"] for item in expected], rtol=1e-4)
    near = in_process.done("similar", model, "--item", 51, "-k", 5, "--json")[0]["items"]
    assert all(-1 <= item["score"] <= 1.00001 and item["id"] != 51 for item in near)


def test_fewer_eigenvalues_under_a_smaller_ceiling(dataset: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    """Of Gowalla's 40,981 items, whose spectrum outweighs what reading the table needs."""
    command = (
        "apps.recsys",
        "train",
        dataset("gowalla") / "train_lightgcn.txt.gz",
        "-o",
        tmp_path / "model",
        "--model",
        "linear",
        "--set",
        "form=filter",
        "--set",
        "degree_power=0.2",
        "--set",
        "saturation=1",
        "--dry-run",
        "--json",
    )
    refused = run(*command, "--memory", "64MiB")
    assert refused.code == 3
    smallest = refused.record["smallest_feasible_bytes"]
    factors = [
        run(*command, "--memory", size).record["plan"]["knobs"]["factors"]
        for size in (500 << 20, smallest + (64 << 20), smallest)
    ]
    assert factors[0] == 256 > factors[1] > factors[2]
    done = run(*command[:-2], "--json", "--memory", smallest)
    assert done.code == 0, done.err
    kept(done.record)


def test_its_settings_are_checked(trained: Trained, tmp_path: Path) -> None:
    command = ("train", trained.interactions, "-o", tmp_path / "model", "--model", "linear")
    for options, facts in (
        (("--set", "form=cubic"), ("form", "cubic", "spectral")),
        (("--set", "degree_power=2"), ("degree_power", 2, 1)),
        (("--set", "saturation=x"), ("saturation", "auto")),
        (("--set", "form=spectral", "--factors", 0), ("spectral", "--factors")),
        (("--tune", 3), ("--tune", "linear")),
        (("--epochs", 3), ("--epochs", "linear")),
        (("--resume",), ("--resume", "linear", "--model ials")),
    ):
        with refused(UsageError, *facts) as caught:
            in_process.done(*command, *options)
        assert "\n" not in str(caught.value)


def test_where_nothing_can_be_hidden_nothing_is_chosen(tmp_path: Path) -> None:
    """A filter is made; all items are equally frequent, and nothing is divided by zero."""
    table = tmp_path / "two.csv"
    table.write_text("user,item\n" + "".join(f"{user},{item}\n" for user in range(2) for item in range(4)))
    in_process.done("train", table, "-o", tmp_path / "model", "--model", "linear")
    asked, _ = in_process.done("recommend", tmp_path / "model", "--history", "1", "-k", 5, "--json")
    assert {item["id"] for item in asked["items"]} == {0, 2, 3}


def test_a_damaged_folder_is_refused(trained: Trained, tmp_path: Path) -> None:
    model = tmp_path / "model"
    fixed = ("--set", "form=filter", "--set", "degree_power=0.4", "--set", "saturation=1", "--factors", 4)
    in_process.done("train", trained.interactions, "-o", model, "--model", "linear", *fixed)
    manifest = json.loads((model / "model.json").read_text())
    for change, facts in (
        ({"factors": 5}, ("spectrum", 5)),
        ({"hyper": {**manifest["hyper"], "form": "cubic"}}, ("form", "cubic")),
        ({"factors": 0, "hyper": {**manifest["hyper"], "form": "spectral"}}, ("factors",)),
    ):
        copy = tmp_path / "copy"
        shutil.copytree(model, copy)
        (copy / "model.json").write_text(json.dumps({**manifest, **change}))
        with refused(BadInput, *facts) as caught:
            in_process.done("recommend", copy, "--history", "1")
        assert "\n" not in str(caught.value)
        shutil.rmtree(copy)
