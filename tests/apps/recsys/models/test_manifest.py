"""A recommender's ``model.json`` is checked when it is read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.data import arrow_numpy
from apps.recsys.data.csr_store import NpyWriter
from apps.recsys.data.id_table import write_table
from apps.recsys.models import weights
from apps.recsys.models.recommender import heldout_count, load_manifest
from common import model_folder
from common.errors import BadInput
from tests.messages import refused

HYPER: dict[str, dict[str, Any]] = {
    "ials": {"alpha": 2.0, "regularization": 10.0, "iterations": 15, "weight": "log", "frequency_scaling": 0.0},
    "bpr": {"learning_rate": 0.01, "user_regularization": 0.2},
    "embedding": {"loss": "softmax", "tables": 1, "temperature": 0.1, "margin": 0.4, "negative_weight": 150.0},
    "popularity": {},
}


def write_files(folder: Path) -> None:
    """The files of a model with 4 users, 5 items of 8 factors and 9 interactions."""
    write_table(folder / "users.parquet", [arrow_numpy.numbers(np.arange(4))])
    write_table(folder / "items.parquet", [arrow_numpy.numbers(np.arange(5))])
    weights.write(folder / weights.WEIGHTS, {weights.ITEMS: np.zeros((5, 8), np.float32)})
    rows = {
        "indptr": ("<i8", [0, 3, 5, 7, 9]),
        "items": ("<i4", [0, 1, 2, 0, 1, 2, 3, 3, 4]),
        "values": ("<f4", [1] * 9),
    }
    for name, (kind, values) in rows.items():
        with NpyWriter(folder / f"history.{name}.npy", kind) as out:
            out.append(np.array(values))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a model of zeros, with some fields of its manifest changed; returns the folder."""

    def call(kind: str, hyper: dict[str, Any], **changed: Any) -> Path:
        counts = {"factors": 8, "items": 5, "users": 4, "interactions": 9, "longest_history": 3}
        fields = {**counts, "table": "full", "hyper": hyper, "split": "none", "seed": 0, **changed}
        write_files(tmp_path)
        names = sorted(path.name for path in tmp_path.iterdir())
        model_folder.seal(tmp_path, application="recsys", kind=kind, files=names, fields=fields)
        return tmp_path

    return call


@pytest.mark.parametrize("kind", HYPER)
def test_every_kind_is_read(kind: str, write: Any) -> None:
    assert load_manifest(write(kind, HYPER[kind]))["hyper"] == HYPER[kind]


@pytest.mark.parametrize(
    ("kind", "changed", "fact"),
    [
        ("ials", {"alpha": None}, "alpha"),
        ("ials", {"alpha": "2"}, "hyper.alpha"),
        ("ials", {"regularization": 0}, "hyper.regularization"),
        ("ials", {"regularization": float("nan")}, "hyper.regularization"),
        ("ials", {"weight": "cubic"}, "hyper.weight"),
        ("ials", {"frequency_scaling": -1}, "hyper.frequency_scaling"),
        ("bpr", {"user_regularization": float("inf")}, "hyper.user_regularization"),
        ("embedding", {"tables": 3}, "hyper.tables"),
        ("embedding", {"loss": None}, "loss"),
        ("embedding", {"user_vectors": "theirs"}, "hyper.user_vectors"),
    ],
)
def test_a_hyper_parameter_that_answering_cannot_use(kind: str, changed: Any, fact: str, write: Any) -> None:
    hyper = {name: value for name, value in {**HYPER[kind], **changed}.items() if value is not None}
    with refused(BadInput, "model.json", fact) as caught:
        load_manifest(write(kind, hyper))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "fact"),
    [
        ({"items": 0}, "items"),
        ({"users": -4}, "users"),
        ({"factors": 8.5}, "factors"),
        ({"factors": True}, "factors"),
        ({"interactions": "9"}, "interactions"),
        ({"hyper": []}, "hyper"),
        ({"hyper": {"alpha": [2.0]}}, "alpha"),
        ({"split": None}, "split"),
        ({"split": "by weekday"}, "split"),
        ({"table": "int3"}, "table"),
        ({"min_value": "3"}, "min_value"),
        ({"columns": {"user": 3}}, "columns"),
    ],
)
def test_a_field_of_another_type_or_range(changed: Any, fact: str, write: Any) -> None:
    with refused(BadInput, "model.json", fact):
        load_manifest(write("ials", **{"hyper": HYPER["ials"], **changed}))


def test_an_unknown_kind_is_named(write: Any) -> None:
    with refused(BadInput, "slim", "ials", "embedding"):
        load_manifest(write("slim", {}))


def test_a_missing_field_is_named(write: Any) -> None:
    folder = write("ials", HYPER["ials"])
    manifest = json.loads((folder / "model.json").read_text())
    del manifest["users"]
    (folder / "model.json").write_text(json.dumps(manifest))
    with refused(BadInput, "users", "missing"):
        load_manifest(folder)


def test_a_split_without_its_files_has_nothing_to_evaluate_on(write: Any) -> None:
    folder = write("ials", HYPER["ials"], split="user-holdout")
    with refused(BadInput, "--split"):
        heldout_count(folder, load_manifest(folder))


def test_training_does_not_replace_another_applications_model(quick: Any, tmp_path: Path) -> None:
    model_folder.seal(tmp_path, application="imaging", kind="segresnet", files=[], fields={})
    before = (tmp_path / "model.json").read_bytes()
    (tmp_path / "rows.csv").write_text("user,item\n1,2\n1,3\n2,3\n")
    done = quick("apps.recsys", "train", tmp_path / "rows.csv", "-o", tmp_path, "--memory", "300MiB")
    assert done.code == 2 and "another application" in done.err
    assert (tmp_path / "model.json").read_bytes() == before
    (tmp_path / "model.json").write_text("[]")  # damaged: whose it was is not known
    assert model_folder.application_of(tmp_path) is None
