"""An ensemble's logits are the mean of its members', in every engine, and only models of one kind are joined."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.imaging.models.ensemble import card, check_members, write_ensemble
from apps.imaging.models.model_folder import TORCH_NETWORK, ImagingModel, read_model
from apps.imaging.models.networks import registry
from common.engines.registry import open_engine
from common.errors import BadInput, UsageError
from tests.apps.imaging.helpers import random_model
from tests.messages import refused, says

TILE = (16, 24, 16)


def members(folder: Path, network: str = "segresnet", count: int = 3) -> list[ImagingModel]:
    for number in range(count):
        random_model(folder / f"model{number}", network=network, seed=number)
    return [read_model(folder / f"model{number}") for number in range(count)]


@pytest.mark.parametrize("network", ["segresnet", "dynunet"])
def test_logits_are_the_mean_of_the_members(network: str, tmp_path: Path) -> None:
    models = members(tmp_path, network)
    assert write_ensemble(models, tmp_path / "joined") == {}  # no folds, no cross-validation
    tiles = np.random.default_rng(0).standard_normal((1, 1, *TILE)).astype(np.float32)

    def logits(directory: Path, engine: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        head = read_model(directory).head
        opened = open_engine(
            directory, name=engine, precision="float32", tile=TILE, batch=1, threads=1, head=head, builder=TORCH_NETWORK
        )
        return np.array(opened(tiles))

    expected = np.mean([logits(model.directory, "torch") for model in models], 0)
    assert np.abs(expected).max() > 0.1
    for engine in ("torch", "openvino"):  # weights are stored in half precision
        np.testing.assert_allclose(logits(tmp_path / "joined", engine), expected, atol=5e-3)
    joined = read_model(tmp_path / "joined")
    assert (joined.arguments["members"], joined.head, joined.labels) == (3, None, models[0].labels)


def test_models_of_several_kinds_are_refused(tmp_path: Path) -> None:
    one, other = members(tmp_path, count=2)
    check_members([one, other])
    for bad, facts in (
        ([one], ("2", "16", "1")),
        ([one, one], ("same",)),
        ([one, replace(other, spacing=(1.0, 1.0, 2.0))], ("model1", "spacing", "model0")),
        ([one, replace(other, labels=other.labels[:2])], ("model1", "labels")),
        ([one, replace(other, network="plainconvunet", convention="nnunet")], ("model1", "imaging train")),
        ([replace(one, arguments={**one.arguments, "members": 2}), other], ("model0", "ensemble")),
    ):
        with refused(UsageError, *facts):
            check_members(bad)


@pytest.mark.parametrize("number", [0, 1, 17, 2.0, True, "2", None])
def test_a_folder_with_an_absurd_number_of_members_is_refused(number: object) -> None:
    complete = registry.arguments("segresnet", {}, in_channels=1, out_channels=2)
    with refused(BadInput, "members"):
        registry.build("segresnet", {**complete, "members": number})


def test_the_card_names_each_fold_and_says_that_the_ensemble_is_not_measured(tmp_path: Path) -> None:
    (model,) = members(tmp_path, count=1)
    per_class = {"class 1": 0.5, "class 2": 0.75}
    trainings = [
        {"fold": [number, 2], "metrics": {"cases": 3, "mean_dice": 0.625, "per_class": per_class}} for number in (0, 1)
    ]
    text = card(model, trainings, trainings[0]["metrics"])  # type: ignore[arg-type]
    says(text, "fold 0/2", "fold 1/2", "cross-validation", "0.6250", "class 2", "not measured")
