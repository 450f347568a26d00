"""Recipes as files: written to be read and edited, and refused in one line where they cannot be followed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps.imaging.cli import parser
from apps.imaging.training.data import facts
from apps.imaging.training.data.dataset import Dataset, read_dataset
from apps.imaging.training.proposal import recipe_file
from apps.imaging.training.proposal.fingerprint import propose
from apps.imaging.training.proposal.proposal import read_proposal
from common.errors import BadInput, UsageError
from common.memory.process.budget import MemoryBudget
from tests.apps.imaging.thick_cases import thick_cases
from tests.messages import refused, says
from tests.schemas import validator

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def thick(dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real cases of which every fourth slice is kept."""
    return thick_cases(dataset("msd-hippocampus"), tmp_path_factory.mktemp("thick") / "set", 5)


@pytest.fixture(scope="module")
def found(thick: Path) -> Dataset:
    return read_dataset(thick)


@pytest.fixture
def path(found: Dataset, tmp_path: Path) -> Path:
    """The recipe of the cases."""
    read = [facts.read_facts(case, found) for case in found.cases]
    recipe_file.write(tmp_path / "recipe.json", propose(found, found.cases, read, "plainconvunet"))
    return tmp_path / "recipe.json"


def test_what_is_proposed_for_thick_slices(path: Path, found: Dataset) -> None:
    recipe = json.loads(path.read_text())
    validator("imaging-recipe").validate(recipe)
    assert recipe_file.read(path) == recipe
    assert (recipe["spacing"], recipe["normalisation"]) == ([1.0, 1.0, 4.0], [[{"op": "zscore"}]])
    first = recipe["choices"][0]
    assert first["patch"][2] < first["patch"][0] and first["strides"][:2] == [[1, 1, 1], [2, 2, 1]]
    assert first["kernels"][0] == [3, 3, 1] and first["features"] == [16, 32, 64, 128]
    background, anterior, _ = recipe["fingerprint"]["classes"]
    assert anterior["cases"] == 5 and 0.01 < anterior["voxels"] / background["voxels"] < 0.05
    assert recipe["fingerprint"]["cases"][0]["shape"] == [35, 51, 9]
    assert max(map(len, path.read_text().splitlines())) < 400  # a line for each choice and case
    proposal = read_proposal(path, found, pytest.fail)
    patch, arguments = proposal.choices[0]
    assert patch == tuple(first["patch"]) and arguments["kernel_sizes"] == first["kernels"]


def test_a_recipe_decides_the_request(path: Path, thick: Path, tmp_path: Path) -> None:
    edited(path, lambda recipe: recipe.update(batch=3, normalisation=[[{"op": "clip", "low": 0, "high": 400}]]))
    args = parser().parse_args(["train", str(thick), "-o", str(tmp_path / "model"), "--recipe", str(path)])
    work = args.command.workload(args.command.request(args), MemoryBudget(1 << 40))
    request = work.request
    assert request.recipe.batch == 3 and request.recipe.spacing == (1.0, 1.0, 4.0)
    assert request.data.operations == [[{"op": "clip", "low": 0, "high": 400}]]
    patches = [one.recipe.patch for one in request.choices]
    assert len(patches) > 5 and patches[0] == request.recipe.patch and patches[-1] < patches[0]
    assert all(not one.others for one in request.choices)
    before = request.recipe.normalisation
    edited(path, lambda recipe: recipe.update(normalisation=[[{"op": "zscore"}]]))
    again = args.command.workload(args.command.request(args), MemoryBudget(1 << 40)).request
    assert again.settings != request.settings and again.recipe.normalisation != before  # is not resumed


def edited(path: Path, change: Edit) -> None:
    recipe = json.loads(path.read_text())
    change(recipe)
    path.write_text(json.dumps(recipe))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda recipe: recipe.update(spacings=[1, 1, 1]), ("spacings",)),
        (lambda recipe: recipe["choices"][0].update(path=[1]), ("path", "choices")),
        (lambda recipe: recipe["choices"][0].update(patch=[32, 32, "8"]), ("choices", "patch")),
        (lambda recipe: recipe.update(batch=0), ("batch", "1")),
        (lambda recipe: recipe.update(spacing=[1, 0, 1]), ("spacing",)),
        (lambda recipe: recipe.update(choices=[]), ("choices",)),
        (lambda recipe: recipe.pop("network"), ("network",)),
        (lambda recipe: recipe.update(network="vnet"), ("network", "vnet", "dynunet")),
        (lambda recipe: recipe.update(network="segresnet"), ("segresnet", "strides", "dynunet")),
        (lambda recipe: recipe.update(normalisation=[]), ("normalisation", "0", "1")),
        (lambda recipe: recipe.update(normalisation=[[{"op": "log"}]]), ("normalisation", "log")),
        (lambda recipe: recipe.update(normalisation=[[{"op": "resample"}]]), ("normalisation", "resample")),
        (lambda recipe: recipe["choices"][1].update(patch=[33, 32, 8]), ("choice 2", "33,32,8")),
        (lambda recipe: recipe["choices"][0].update(features=[8, 8]), ("choice 1", "features_per_stage")),
        (lambda recipe: recipe["choices"][0]["kernels"].__setitem__(0, [2, 3, 3]), ("choice 1", "odd")),
        (lambda recipe: recipe.update(peakline_recipe=2), ("peakline_recipe",)),
    ],
)
def test_a_recipe_that_cannot_be_followed(change: Edit, words: tuple[str, ...], path: Path, found: Dataset) -> None:
    edited(path, change)
    with refused(UsageError, "--recipe", "recipe.json", *words) as caught:
        read_proposal(path, found, pytest.fail)
    assert "\n" not in str(caught.value)


def test_a_network_without_levels_takes_a_patch(path: Path, found: Dataset) -> None:
    edited(path, lambda recipe: recipe.update(network="segresnet", choices=[{"patch": [32, 32, 8]}]))
    proposal = read_proposal(path, found, pytest.fail)
    assert proposal.choices[0][0] == (32, 32, 8) and proposal.choices[0][1]["init_filters"] == 16


def test_another_data_set_is_said(path: Path, found: Dataset) -> None:
    def change(recipe: dict[str, Any]) -> None:
        cases = recipe["fingerprint"]["cases"]
        cases[0]["shape"] = [35, 51, 10]
        cases[1]["name"] = "hippocampus_999"

    edited(path, change)
    lines: list[str] = []
    read_proposal(path, found, lines.append)
    says("\n".join(lines), found.cases[0].name, "35x51x9", "35x51x10", found.cases[1].name, "hippocampus_999")
    edited(path, lambda recipe: recipe["fingerprint"]["classes"].pop())
    with refused(BadInput, "recipe.json", "label values", "[0, 1]", "[0, 1, 2]"):
        read_proposal(path, found, lines.append)


@pytest.mark.parametrize("words", [["--patch", "32"], ["--network", "unet"], ["--spacing", "2"], ["--set", "batch=4"]])
def test_what_the_file_has_is_not_an_option_too(words: list[str], path: Path, thick: Path, tmp_path: Path) -> None:
    args = parser().parse_args(["train", str(thick), "-o", str(tmp_path / "m"), "--recipe", str(path), *words])
    with refused(UsageError, "--recipe", words[0]):
        args.command.request(args)
