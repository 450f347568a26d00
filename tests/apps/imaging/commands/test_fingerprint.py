"""``imaging fingerprint`` as a user runs it, and a network of nnU-Net that follows its recipe to a model in use."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.memory.process.budget import MIB
from tests.apps.imaging import in_process
from tests.apps.imaging.helpers import output_file, read_labels
from tests.apps.imaging.thick_cases import thick_cases
from tests.messages import says
from tests.promise import kept

Runner = Callable[..., Any]


@pytest.fixture(scope="module")
def thick(dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thick_cases(dataset("msd-hippocampus"), tmp_path_factory.mktemp("thick") / "set", 5)


def test_it_keeps_its_ceiling_and_says_what_it_found(
    dataset: Callable[[str], Path], tmp_path: Path, run: Runner
) -> None:
    out = tmp_path / "recipe.json"
    command = ("apps.imaging", "fingerprint", dataset("msd-hippocampus"), "-o", out, "--memory")
    done = run(*command, "160MiB", "--json")
    assert done.code == 0, done.err
    results, measured = done.record["results"], done.record["measured"]["peak_bytes"]
    assert (results["cases"], results["classes"], results["spacing"]) == (208, 3, [1.0, 1.0, 1.0])
    assert results["patches"][0] == [40, 56, 40]  # as nnU-Net plans it
    says(done.err, "208 cases", "31-43", "label 1")
    assert measured <= 160 * MIB
    kept(done.record)
    recipe = json.loads(out.read_text())
    assert len(recipe["fingerprint"]["cases"]) == 208
    out.unlink()
    refused = run(*command, "30MiB")
    assert refused.code == 3 and not out.exists()
    says(refused.err, "30.0 MiB", "--memory")


def test_unusable_cases_are_named_or_left_out(thick: Path, tmp_path: Path, quick: Runner) -> None:
    bad = tmp_path / "set"
    for part in ("imagesTr", "labelsTr"):
        (bad / part).mkdir(parents=True)
        for path in (thick / part).iterdir():
            (bad / part / path.name).write_bytes(path.read_bytes())
    (bad / "dataset.json").write_bytes((thick / "dataset.json").read_bytes())
    first = min((bad / "imagesTr").iterdir())
    first.write_bytes(first.read_bytes()[:-200])
    out = tmp_path / "recipe.json"
    done = quick("apps.imaging", "fingerprint", bad, "-o", out)
    assert (done.code, len(done.err.strip().splitlines())) == (4, 1) and not out.exists()
    says(done.err, first.name)
    results, lines = in_process.done("fingerprint", bad, "-o", out, "--skip-bad")
    assert results["cases"] == 4 and len(json.loads(out.read_text())["fingerprint"]["cases"]) == 4
    says("\n".join(lines), "skipped", first.name)
    inside = quick("apps.imaging", "fingerprint", bad, "-o", bad / "recipe.json")
    assert inside.code == 2
    says(inside.err, "-o", "data set")


def test_a_network_of_nnunet_is_trained_continued_and_used(thick: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "recipe.json", tmp_path / "model"
    in_process.done("fingerprint", thick, "-o", out, "--network", "plainconvunet")
    recipe = json.loads(out.read_text())
    recipe["choices"] = recipe["choices"][4:5]
    recipe["choices"][0]["features"] = [8, 12, 16]
    out.write_text(json.dumps(recipe))
    options = ("--recipe", out, "--fold", "0/5", "--amp", "off", "--steps", 3)
    results, _ = in_process.done("train", thick, "-o", model, *options)
    assert 0 <= results["metrics"]["mean_dice"] <= 1 and results["steps"] == 3
    manifest = json.loads((model / "model.json").read_text())
    assert manifest["network"]["arguments"]["strides"][1] == [2, 2, 1]
    assert (manifest["patch"], manifest["spacing"]) == (recipe["choices"][0]["patch"], [1.0, 1.0, 4.0])
    image = min((thick / "imagesTr").iterdir())
    labels = []
    for engine in ("openvino", "torch"):
        in_process.done("infer", image, "-m", model, "-o", tmp_path / engine, "--engine", engine)
        labels.append(read_labels(output_file(tmp_path / engine)))
    assert np.array_equal(*labels)
    # Another training goes on from it.
    again, lines = in_process.done(
        "train", thick, "-o", tmp_path / "second", "--init", model, "--fold", "0/5", "--amp", "off", "--steps", 1
    )
    assert again["steps"] == 1
    says("\n".join(lines), "weights of model")
