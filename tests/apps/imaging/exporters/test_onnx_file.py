"""An ONNX file answers what PyTorch answers, and says what it expects."""

import json
from pathlib import Path

import numpy as np
import pytest

from apps.imaging.exporters.onnx_file import write_onnx
from apps.imaging.models.model_folder import read_model
from tests.apps.imaging.helpers import random_model


@pytest.mark.parametrize("network", ["segresnet", "unet"])
def test_logits_of_onnx_runtime_are_those_of_pytorch(network: str, tmp_path: Path) -> None:
    import onnxruntime
    import torch

    module = random_model(tmp_path / "model", network=network, classes=4, spacing=(1.5, 1.0, 2.0))
    write_onnx(read_model(tmp_path / "model"), tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [one.name for one in session.get_outputs()] == ["logits"]
    for shape in ((2, 1, 16, 24, 16), (1, 1, 32, 16, 8)):  # axes are dynamic
        tile = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        with torch.inference_mode():
            expected = module(torch.from_numpy(tile)).numpy()
        np.testing.assert_allclose(session.run(None, {"image": tile})[0], expected, atol=2e-4)
    described = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert described["labels"] == {"0": "background", "1": "class 1", "2": "class 2", "3": "class 3"}
    assert (described["spacing"], described["orientation"]) == ([1.5, 1.0, 2.0], "RAS")
    assert (described["intensity"], described["patch"]) == ([[{"op": "zscore"}]], [16, 24, 16])
