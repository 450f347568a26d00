"""Exported networks are as exact in OpenVINO as float32 can be, on tiles that are mostly air."""

from pathlib import Path

import numpy as np

from apps.imaging.models.networks import registry
from apps.imaging.models.onnx_export import export_onnx
from common.engines.openvino import import_openvino


def test_group_norm_of_a_tile_that_is_half_constant(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    given = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
    complete = registry.arguments("segresnet", given, in_channels=1, out_channels=2)
    network = registry.build("segresnet", complete)
    export_onnx("segresnet", network, tmp_path / "network.onnx", tile=(8, 8, 8))
    core = import_openvino().Core()
    model = core.read_model(tmp_path / "network.onnx")
    tile = np.random.default_rng(0).standard_normal((1, 1, 64, 64, 64)).astype(np.float32)
    tile[..., :32] = -1
    model.reshape(list(tile.shape))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    split = registry.split_head("segresnet", network.double())
    assert split is not None
    with torch.inference_mode():
        expected = split[0](torch.from_numpy(tile).double()).numpy()
    np.testing.assert_allclose(compiled([tile])[0], expected, atol=2e-5)
