"""Settings, values and tensors that were called differently before version 0.2 are still read, with one note."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps.recsys.models import weights
from apps.recsys.models.old_names import renamed_pairs
from common.errors import UsageError
from common.files import sha256
from tests.apps.recsys import in_process
from tests.apps.recsys.asked import train_request
from tests.apps.recsys.conftest import Trained
from tests.messages import refused, says

Run = Callable[..., Any]
SMALL = ("--factors", 8, "--memory", "700MiB", "--threads", 1)
EMBEDDING = ("--model", "embedding", "--epochs", 1, "--set", "batch=64", "--set", "negatives=64")


@pytest.mark.parametrize(
    ("kind", "old", "name", "value"),
    [
        ("ials", "frequency=0.5", "frequency_scaling", 0.5),
        ("embedding", "user=own", "user_vectors", "learned"),
        ("embedding", "user=sum", "user_vectors", "history"),
        ("embedding", "user_vectors=own", "user_vectors", "learned"),
    ],
)
def test_old_settings_are_read_with_a_note(kind: str, old: str, name: str, value: object) -> None:
    request = train_request("--model", kind, "--set", old)
    assert request.model.hyper[name] == value and old.partition("=")[0] not in set(request.model.hyper) - {name}
    (note,) = request.notes
    says(note, old, f"{name}={value}")
    assert not train_request("--model", kind, "--set", f"{name}={value}").notes


def test_a_setting_of_another_model_keeps_its_name() -> None:
    """``user`` is the old name of a setting of embeddings only."""
    assert renamed_pairs("ials", ["user=own"]) == (["user=own"], [])
    with refused(UsageError, "user=own", "--model embedding"):
        train_request("--set", "user=own")


def test_an_old_setting_is_not_searched() -> None:
    assert "frequency_scaling" in train_request("--model", "ials", "--tune", 2).space
    assert "frequency_scaling" not in train_request("--model", "ials", "--tune", 2, "--set", "frequency=1").space


def aged(model: Path, copy: Path, hyper: dict[str, str], tensors: dict[str, str]) -> None:
    """Copy a model folder with the names of hyper-parameters, their values and tensors as they were before."""
    shutil.copytree(model, copy)
    manifest = json.loads((copy / "model.json").read_text())
    old = {name: hyper.get(str(value), value) for name, value in manifest["hyper"].items()}
    manifest["hyper"] = {hyper.get(name, name): value for name, value in old.items()}
    path = copy / weights.WEIGHTS
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    text = json.dumps({tensors.get(name, name): entry for name, entry in header.items()}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    manifest["files"][weights.WEIGHTS] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (copy / "model.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("options", "hyper", "tensors"),
    [
        (("--model", "ials", "--set", "frequency_scaling=1"), {"frequency_scaling": "frequency"}, {}),
        (
            (*EMBEDDING, "--set", "tables=2", "--table", "int8"),
            {"user_vectors": "user", "history": "sum"},
            {"user_side_factors": "taste_factors", "user_side_factors.scales": "taste_factors.scales"},
        ),
        (
            (*EMBEDDING, "--set", "user_vectors=learned"),
            {"user_vectors": "user", "learned": "own"},
            {},
        ),
    ],
)
def test_an_old_model_folder_answers_as_before(
    trained: Trained,
    quick: Run,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    options: tuple[Any, ...],
    hyper: dict[str, str],
    tensors: dict[str, str],
) -> None:
    model, old = tmp_path / "model", tmp_path / "old"
    in_process.done("train", trained.interactions, "-o", model, *options, *SMALL)
    aged(model, old, hyper, tensors)
    assert hyper.values() & json.loads((old / "model.json").read_text())["hyper"].keys()
    command = ("--history", "0,8,16", "-k", 4, "--memory", "400MiB", "--json")
    caplog.clear()
    answer, lines = in_process.done("recommend", model, *command)
    assert "older version" not in caplog.text + "".join(lines)
    done = quick("apps.recsys", "recommend", old, *command)
    assert done.code == 0, done.err
    assert done.record["results"] == answer
    (note,) = (line for line in done.err.splitlines() if "older version" in line)
    says(note, *(f"{new}=" for new in hyper if new in ("frequency_scaling", "user_vectors")))
    assert quick("apps.recsys", "inspect", old).code == 0
