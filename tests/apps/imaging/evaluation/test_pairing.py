"""Files of single classes are compared as the label map that they are parts of; classes have the model's names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.bench.peers import nnunet_folder
from apps.imaging.evaluation.metrics import evaluate, scan
from apps.imaging.evaluation.pairing import find_pairs
from common.errors import BadInput
from tests.apps.imaging import bundle_folder, in_process
from tests.apps.imaging.evaluation.test_metrics import blobs
from tests.apps.imaging.helpers import random_model, write_nifti
from tests.messages import refused
from tests.promise import kept

NAMES = {0: "background", 1: "left lung", 2: "left lung lobe"}


def measured(predictions: Path, references: Path, names: dict[int, str]) -> dict[str, Any]:
    pairs = find_pairs(predictions, references, names=names)
    return evaluate(pairs, [scan(pair) for pair in pairs], names=names)


def write(folder: Path, layout: str, case: str, labels: np.ndarray) -> None:
    """Labels of a case, as one file or one for each class."""
    folder.mkdir(exist_ok=True)
    if layout == "whole":
        write_nifti(folder / f"{case}.nii.gz", labels)
        return
    (folder / case).mkdir(exist_ok=True) if layout == "folders" else None
    for value, name in {1: "left_lung", 2: "left_lung_lobe"}.items():
        path = folder / case / f"{name}.nii.gz" if layout == "folders" else folder / f"{case}-{name}.nii.gz"
        write_nifti(path, (labels == value).astype(np.uint8))


@pytest.mark.parametrize("layout", ["whole", "files", "folders"])
@pytest.mark.parametrize("reference", ["whole", "files", "folders"])
def test_files_of_one_class_measure_as_the_whole(tmp_path: Path, layout: str, reference: str) -> None:
    for number, case in enumerate(("a", "b-1")):
        write(tmp_path / "expected", "whole", case, blobs(number))
        write(tmp_path / "expected-refs", "whole", case, blobs(number + 5))
        write(tmp_path / "out", layout, case, blobs(number))
        write(tmp_path / "refs", reference, case, blobs(number + 5))
    expected = measured(tmp_path / "expected", tmp_path / "expected-refs", NAMES)
    assert [row["name"] for row in expected["per_class"].values()] == ["left lung", "left lung lobe"]
    assert measured(tmp_path / "out", tmp_path / "refs", NAMES) == expected


def test_classes_may_overlap(tmp_path: Path) -> None:
    body = np.zeros((20, 20, 20), np.uint8)
    body[4:16, 4:16, 4:16] = 1
    core = np.zeros_like(body)
    core[6:10, 6:10, 6:10] = 1
    for folder in ("out", "refs"):
        (tmp_path / folder).mkdir()
        write_nifti(tmp_path / folder / "a-left_lung.nii.gz", body)
        write_nifti(tmp_path / folder / "a-left_lung_lobe.nii.gz", core)
    found = measured(tmp_path / "out", tmp_path / "refs", NAMES)
    assert found["cases"] == 1 and found["mean_dice"] == 1
    (tmp_path / "refs" / "a-left_lung.nii.gz").unlink()
    with refused(BadInput, "a-left_lung.nii.gz", "no file of this class"):
        find_pairs(tmp_path / "out", tmp_path / "refs", names=NAMES)
    with refused(BadInput, "a-left_lung.nii.gz", "-m MODEL"):
        find_pairs(tmp_path / "out", tmp_path / "refs")


def test_split_outputs_of_a_model_are_evaluated_by_their_names(run: Any, quick: Any, tmp_path: Path) -> None:
    random_model(tmp_path / "model")
    image = write_nifti(tmp_path / "image.nii.gz", np.random.default_rng(0).normal(size=(20, 24, 18)))
    for words in (("-o", tmp_path / "refs"), ("-o", tmp_path / "out", "--split-classes")):
        in_process.done("infer", image, "-m", tmp_path / "model", *words)
    command = ("apps.imaging", "evaluate", tmp_path / "out", tmp_path / "refs", "-m", tmp_path / "model")
    done = run(*command, "--tolerance", "2.5", "--json")
    assert done.code == 0, done.err
    kept(done.record)
    found = done.record["results"]
    assert found["tolerance_mm"] == 2.5 and found["mean_dice"] == 1 and found["missed"] == 0
    assert {row["name"] for row in found["per_class"].values()} <= {"class 1", "class 2"}
    table = quick(*command)
    assert "class 1" in table.out and "missed" in table.out


@pytest.mark.parametrize("kind", ["nnunet", "bundle", "map"])
def test_names_are_those_of_any_model(quick: Any, tmp_path: Path, kind: str) -> None:
    model = tmp_path / ("map.json" if kind == "map" else "model")
    if kind == "nnunet":
        nnunet_folder.write(model, seeds=())
    elif kind == "bundle":
        bundle_folder.write(model)
    else:
        content = {"value": 1, "name": "liver", "from": {"model": 1, "label": 1}}
        model.write_text(json.dumps({"classes": [content]}))
    one, two = write_nifti(tmp_path / "a.nii", blobs(0)), write_nifti(tmp_path / "b.nii", blobs(1))
    done = quick("apps.imaging", "evaluate", one, two, "-m", model, "--json")
    assert done.code == 0, done.err
    assert done.record["results"]["per_class"]["1"]["name"] == ("class 1" if kind == "nnunet" else "liver")
    with refused(BadInput, "absent"):
        in_process.done("evaluate", one, two, "-m", tmp_path / "absent")
