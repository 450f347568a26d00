"""An exported bundle is MONAI's own network, transforms and inferer with the model's numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.exporters.monai_bundle import check_exportable, configuration, metadata, write_bundle
from apps.imaging.importers.monai_transforms import preprocessing
from apps.imaging.models.model_folder import read_model
from apps.imaging.models.networks import nnunet, registry
from apps.imaging.volumes.intensity import apply, resolve
from common.errors import UsageError
from tests.apps.imaging.helpers import random_model
from tests.messages import refused


@pytest.mark.parametrize("network", sorted(registry.NETWORKS.keys() - nnunet.NETWORKS.keys()))
def test_monai_loads_the_weights_into_the_network_that_is_named(network: str, tmp_path: Path) -> None:
    import torch
    from monai.bundle import ConfigParser

    small = {"basicunet": {"features": [8, 8, 8, 8, 8, 8]}}.get(network)
    module = random_model(tmp_path / "model", network=network, arguments=small, patch=(16, 32, 16))
    write_bundle(read_model(tmp_path / "model"), tmp_path / "bundle")
    content = json.loads((tmp_path / "bundle" / "configs" / "inference.json").read_text("utf-8"))
    monai = ConfigParser(content).get_parsed_content("network_def").eval()
    monai.load_state_dict(torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True))
    tile = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 16, 32, 16)).astype(np.float32))
    with torch.inference_mode():
        torch.testing.assert_close(monai(tile), module(tile), atol=1e-5, rtol=1e-5)
    assert content["inferer"]["roi_size"] == [16, 32, 16]
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == (tmp_path / "model").stat().st_mode & 0o777


WINDOW = [{"op": "clip", "low": -100.0, "high": 300.0}, {"op": "scale", "low": -100.0, "high": 300.0}]


def test_networks_of_nnunet_are_none_of_monais(tmp_path: Path) -> None:
    random_model(tmp_path / "model", network="plainconvunet", arguments={"features_per_stage": [2, 2, 2, 2]})
    with refused(UsageError, "model", "plainconvunet", "--as onnx"):
        check_exportable(read_model(tmp_path / "model"), tmp_path / "model")


@pytest.mark.parametrize("operations", [[{"op": "zscore"}], WINDOW, [], [{"op": "range", "low": 0.0, "high": 1.0}]])
def test_monai_normalises_as_the_model_does(operations: list[dict[str, Any]], tmp_path: Path) -> None:
    """Each that a training chooses: by MONAI's transforms, and read back by the importer of bundles."""
    import torch
    from monai.bundle import ConfigParser

    random_model(tmp_path / "model", intensity=operations)
    content = configuration(read_model(tmp_path / "model"))["preprocessing"]["transforms"]
    (spacing,) = [one for one in content if one["_target_"] == "Spacingd"]
    assert spacing == {"_target_": "Spacingd", "pixdim": [1.0, 1.0, 1.0], "mode": "bilinear", "keys": "image"}
    values = np.random.default_rng(0).normal(100, 200, (6, 7, 8)).astype(np.float32)
    expected = apply(resolve(operations, lambda: [values]), values.copy())
    intensities = [one for one in content if "Intensity" in one["_target_"]]
    done = ConfigParser({"_": {"_target_": "Compose", "transforms": intensities}}).get_parsed_content("_")
    np.testing.assert_allclose(done({"image": torch.from_numpy(values[None])})["image"][0], expected, atol=1e-5)
    read = [one for one in preprocessing([dict(one) for one in content]).intensity if one["op"] != "resample"]
    np.testing.assert_allclose(apply(resolve(read, lambda: [values]), values.copy()), expected, atol=1e-5)


def test_the_description_names_channels_and_classes(tmp_path: Path) -> None:
    random_model(tmp_path / "model", classes=3)
    formats = metadata(read_model(tmp_path / "model"))["network_data_format"]
    assert formats["inputs"]["image"]["channel_def"] == {"0": "image"}
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "class 1", "2": "class 2"}


def test_what_a_bundle_cannot_express_is_refused(tmp_path: Path) -> None:
    random_model(tmp_path / "model")
    model = read_model(tmp_path / "model")
    check_exportable(model, Path("a"))
    with refused(UsageError, "a", "imaging train", "--as onnx"):
        check_exportable(replace(model, convention="nnunet"), Path("a"))
    with refused(UsageError, "a", "ensemble"):
        check_exportable(replace(model, arguments={**model.arguments, "members": 2}), Path("a"))
    for operation in ({"op": "zscore", "nonzero": True}, {"op": "percentiles", "low": 1, "high": 99}, WINDOW[0]):
        with refused(UsageError, "a", "normalised", "--as onnx"):
            check_exportable(replace(model, intensity=(operation,)), Path("a"))
    with refused(UsageError, "a", "channels", "--as onnx"):
        check_exportable(replace(model, further_intensity=((),)), Path("a"))
