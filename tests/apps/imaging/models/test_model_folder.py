"""Manifests whose fields contradict the model's own files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps.imaging.models.model_folder import read_model
from common.errors import BadInput
from common.model_folder import shipped_models
from tests.messages import refused


def edited(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of the installed model with another manifest."""
    shutil.copytree(shipped_models()["hippocampus"], folder)
    manifest = json.loads((folder / "model.json").read_text())
    edit(manifest)
    (folder / "model.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m: m["labels"].pop(), "2 labels"),
        (lambda m: m["labels"].append({"value": 3, "name": "x", "code": None, "color": [1, 2, 3]}), "4 labels"),
        (lambda m: m.update(patch=[10**9, 8, 8]), "patch[0]"),
        (lambda m: m.update(patch=[4096, 4096, 4096]), "patch of 4096x4096x4096"),
        (lambda m: m["network"]["arguments"].update(out_channels=7), "7 output channels"),
    ],
)
def test_a_manifest_that_contradicts_the_model_is_refused(tmp_path: Path, edit: Any, says: str) -> None:
    with refused(BadInput, tmp_path / "model" / "model.json", says):
        read_model(edited(tmp_path / "model", edit))
