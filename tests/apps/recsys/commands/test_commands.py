"""The real command line: what it prints and writes, and how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.data import synthetic
from apps.recsys.models import recommender
from apps.recsys.models.weights import read as read_weights
from common import __version__, model_folder
from common.errors import BadInput, UsageError
from tests.apps.recsys import in_process
from tests.apps.recsys.conftest import Trained
from tests.machine import wait_until
from tests.messages import refused, says
from tests.schemas import read_manifest, read_record

Run = Callable[..., Any]


def test_help_is_light() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "apps.recsys", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "train" in done.stdout
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"numpy", "scipy", "pyarrow", "pandas", "implicit", "torch", "fastapi", "uvicorn"}


def test_version_names_the_suite() -> None:
    command = [sys.executable, "-m", "apps.recsys", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"peakline {__version__}\n"


def test_train_writes_a_sealed_model_and_a_record(trained: Trained) -> None:
    manifest = recommender.load_manifest(trained.model)
    model_folder.verify(trained.model, manifest)
    assert {"factors": 16, "table": "full", "items": 200, "users": 300}.items() <= manifest.items()
    assert manifest["files"].keys() >= {"items.parquet", "users.parquet", "weights.safetensors", "card.md"}
    record = read_record(trained.model / "run.json")
    assert record["exit_code"] == 0 and record["within_budget"]
    assert record["results"]["data"]["interactions"] == manifest["interactions"]
    metrics = record["results"]["metrics"]
    assert metrics["ndcg@10"] > 0.3 and set(metrics) >= {"ndcg@100", "recall@20", "recall@50", "hr@10", "coverage@10"}
    assert "u0000" not in json.dumps(record) and str(trained.model) not in json.dumps(record)
    assert not list(trained.model.parent.glob(".*scratch"))


def test_weights_are_safetensors(trained: Trained) -> None:
    from safetensors.numpy import load_file

    path = trained.model / "weights.safetensors"
    np.testing.assert_array_equal(read_weights(path), load_file(path)["item_factors"])


def test_training_again_gives_the_same_model(trained: Trained, tmp_path: Path) -> None:
    model = tmp_path / "model"
    options = (
        "--model",
        "ials",
        "--split",
        "user-holdout",
        "--factors",
        16,
        "--memory",
        "300MiB",
    )
    for _ in range(2):  # the second time over the first
        in_process.done("train", trained.interactions, "--items", trained.titles, "-o", model, *options)
    ours = read_weights(model / "weights.safetensors")
    np.testing.assert_allclose(ours, read_weights(trained.model / "weights.safetensors"), atol=1e-5)


def test_evaluate_needs_no_more_than_the_model(trained: Trained, quick: Run) -> None:
    done = quick("apps.recsys", "evaluate", trained.model, "--memory", "200MiB", "--json")
    assert done.code == 0, done.err
    results = done.record["results"]
    assert results["metrics"] == pytest.approx(trained.record["results"]["metrics"])
    assert results["users"] == trained.record["results"]["data"]["scored_users"]
    assert read_record(trained.model / "evaluation.json")["results"] == results


def test_popularity_and_leave_last(trained: Trained, tmp_path: Path) -> None:
    model, options = tmp_path / "model", ("--model", "popularity", "--split", "leave-last")
    results, _ = in_process.done("train", trained.interactions, "-o", model, *options)
    assert results["data"]["scored_users"] == 300
    assert 0 < results["metrics"]["hr@10"] < 1
    answer, _ = in_process.done("recommend", model, "--user", "u00001", "-k", "3", "--json")
    scores = [item["score"] for item in answer["items"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    with refused(UsageError, "--split leave-last"):
        in_process.done("evaluate", model, "--protocol", "user-holdout")


def test_recommend_hides_what_is_known_and_obeys_limits(trained: Trained) -> None:
    import csv

    with trained.interactions.open() as stream:
        seen = {int(row["item"]) for row in csv.DictReader(stream) if row["user"] == "u00003"}

    def items(*arguments: object) -> list[int]:
        results, _ = in_process.done("recommend", trained.model, *arguments, "--json")
        return [item["id"] for item in results["items"]]

    first = items("--user", "u00003", "-k", 5)
    assert len(first) == 5 and not seen & set(first)
    without = items("--user", "u00003", "-k", 5, "--exclude", f"{first[0]},{first[1]}")
    assert without[:3] == first[2:]
    assert items("--user", "u00003", "--only", f"{first[3]},{first[1]}") == [first[1], first[3]]
    folded = items("--history", ",".join(map(str, sorted(seen))), "-k", 20)
    assert not seen & set(folded) and len(set(folded) & set(items("--user", "u00003", "-k", 20))) >= 12


def test_tables_are_for_people(trained: Trained, quick: Run) -> None:
    done = quick("apps.recsys", "similar", trained.model, "--item", 8, "-k", 4, "--memory", "200MiB")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["#", "id", "score", "title"] and len(lines) == 5
    assert sum("Amber" in line for line in lines) >= 2  # item 8 is of the first taste
    says(done.err, "memory", "200.0 MiB", "predicted")


def test_unknown_ids(trained: Trained, quick: Run) -> None:
    done = quick("apps.recsys", "recommend", trained.model, "--user", "nobody", "--strict")
    assert (done.code, done.out, done.err.count("\n")) == (4, "", 1)
    says(done.err, "user 'nobody'")
    for arguments, unknown in (
        (("--history", "3,99999", "--strict"), "'99999'"),
        (("--user", "u00001", "--only", "x"), "item 'x'"),
        (("--user", "u00001", "--only", "3,x", "--strict"), "'x'"),
    ):
        with refused(BadInput, unknown):
            in_process.done("recommend", trained.model, *arguments)


def test_inspect_checks_digests(trained: Trained, quick: Run, tmp_path: Path) -> None:
    done = quick("apps.recsys", "inspect", trained.model)
    assert done.code == 0
    says(done.out, "ials", "16 factors")
    copy = shutil.copytree(trained.model, tmp_path / "copy")
    content = bytearray((copy / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(content)
    done = quick("apps.recsys", "inspect", copy)
    assert (done.code, done.err.count("\n")) == (4, 1) and "sha256" in done.err
    (copy / "users.parquet").unlink()
    done = quick("apps.recsys", "inspect", copy)
    assert (done.code, done.err.count("\n")) == (4, 1)
    says(done.err, "users.parquet")
    for command in (("recommend", copy, "--user", "u00001"), ("evaluate", copy)):
        with refused(BadInput, "users.parquet"):
            in_process.done(*command)


def test_model_of_the_other_application(quick: Run, tmp_path: Path) -> None:
    model_folder.seal(tmp_path, application="imaging", kind="segresnet", files=[], fields={})
    done = quick("apps.recsys", "recommend", tmp_path, "--user", 1)
    assert (done.code, done.err.count("\n")) == (4, 1) and "imaging" in done.err


@pytest.mark.parametrize(
    ("text", "options", "code", "facts"),
    [
        (None, (), 4, ("in.csv", "no such")),
        ("", (), 4, ("in.csv", "empty")),
        ("user,item\n1,2\n3,4\n", ("--value-col", "stars"), 4, ("in.csv", "'stars'", "user, item")),
        ("user,item,rating\n1,2,x\n", (), 4, ("in.csv", "'rating'", "'x'")),
        ("user,item\n1,2\n1,3\n", (), 4, ("in.csv", "1 user")),
        ("user,item\n1,2\n3,4\n", ("--split", "user-holdout"), 4, ("user", "items")),
        ("user,item\n1,2\n3,4\n", ("--set", "beta=1"), 2, ("--set", "beta", "degree_power")),
        ("user,item\n1,2\n3,4\n", ("--model", "linear", "--set", "alpha=1"), 2, ("--set alpha=1", "--model ials")),
        ("user,item\n1,2\n3,4\n", ("--model", "ials", "--set", "alpha=0"), 2, ("alpha", "above 0")),
        ("user,item\n1,2\n3,4\n", ("--memory", "lots"), 2, ("'lots'", "size", "MiB")),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    quick: Run, tmp_path: Path, text: str | None, options: tuple[str, ...], code: int, facts: tuple[str, ...]
) -> None:
    path = tmp_path / "in.csv"
    if text is not None:
        path.write_text(text)
    before = set(tmp_path.iterdir())
    command = ("train", path, "-o", tmp_path / "model", *options)
    if text is None or "--memory" in options:  # the ceiling is the command line's
        done = quick("apps.recsys", *command)
        assert (done.code, done.out) == (code, "")
        assert done.err.count("\n") == 1
        says(done.err, *facts)
    else:
        with refused(BadInput if code == 4 else UsageError, *facts) as caught:
            in_process.done(*command)
        assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before


def test_dry_run_only_plans(trained: Trained, run: Run, tmp_path: Path) -> None:
    done = run("apps.recsys", "train", trained.interactions, "-o", tmp_path / "model", "--dry-run")
    assert done.code == 0
    says(done.out, "recsys train", "peak", "factors=", "user_block")
    assert not list(tmp_path.iterdir())


def test_what_killed_runs_left_behind_is_removed(run: Run, tmp_path: Path) -> None:
    interactions, _ = synthetic.write(tmp_path, users=2000, items=1500, mean=60)
    model = tmp_path / "model"
    long = ("--model", "ials", "--factors", "64", "--set", "iterations=100000", "--memory", "400MiB", "-q")
    command = [sys.executable, "-m", "apps.recsys", "train", str(interactions), "-o", str(model)]
    # a group of its own, so that SIGKILL reaches the child as well as its supervisor
    with subprocess.Popen([*command, *long], start_new_session=True) as process:
        wait_until(lambda: bool(list(tmp_path.glob(".model.*/history.indptr.npy"))), seconds=60, alive=process)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (model / "model.json").exists()
    assert list(tmp_path.glob(".model.*.scratch"))  # the kill left its scratch folder
    done = run("apps.recsys", "train", interactions, "-o", model, "--factors", 8, "--memory", "400MiB", "-q")
    assert done.code == 0, done.err
    assert read_manifest(model)["users"] == 2000
    assert not list(tmp_path.glob(".model.*.scratch"))
