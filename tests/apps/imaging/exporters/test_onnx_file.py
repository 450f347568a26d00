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


@pytest.mark.parametrize(("network", "how"), [("segresnet", "int8"), ("unet", "int8"), ("basicunet", "weights")])
def test_the_int8_file_labels_as_openvinos_int8_network_does(network: str, how: str, tmp_path: Path) -> None:
    """Biases that the quantiser corrected, transposed convolutions and sums among them."""
    pytest.importorskip("nncf")
    import onnx
    import onnxruntime

    from common.engines.openvino import import_openvino, read_int8
    from common.engines.quantization import quantise, quantise_weights
    from common.engines.registry import open_engine

    directory, tile = tmp_path / "model", (32, 32, 32)
    random_model(directory, network=network, patch=tile)
    tiles = np.random.default_rng(0).standard_normal((3, 1, 1, *tile)).astype(np.float32)
    if how == "int8":
        quantise(directory, directory, lambda: iter(tiles), count=len(tiles), tile=tile)
    else:
        quantise_weights(directory, directory)
    model = read_model(directory)
    write_onnx(model, tmp_path / "int8.onnx", "int8")
    write_onnx(model, tmp_path / "float32.onnx")
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("int8", "float32")]
    assert sizes[0] < 0.65 * sizes[1]  # a small network has much graph
    written = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(written, full_check=True)
    kinds = [node.op_type for node in written.graph.node]
    assert kinds.count("DequantizeLinear") > kinds.count("QuantizeLinear") >= (1 if how == "int8" else 0)
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", disabled_optimizers=["EliminateIdentity"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["precision"]) == "int8"
    engine = open_engine(directory, name="openvino", precision="int8", tile=tile, batch=1, threads=1, head=model.head)
    expected, answer = np.array(engine(tiles[0])), session.run(None, {"image": tiles[0]})[0]
    assert (answer.argmax(1) == expected.argmax(1)).mean() > 0.95  # random weights
    # Values that lie between two steps go either way, more of them in each layer; the first has none.
    first = next(node.output[0] for node in written.graph.node if node.op_type == "Conv")
    core = import_openvino().Core()
    network = read_int8(core, directory)
    network.reshape(tiles[0].shape)
    network.add_outputs([first])
    inside = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    written.graph.output.append(onnx.helper.make_empty_tensor_value_info(first))
    outputs = onnxruntime.InferenceSession(written.SerializeToString()).run([first], {"image": tiles[0]})
    expected = inside(tiles[0])[inside.output(first)]
    np.testing.assert_allclose(outputs[0], expected, atol=2e-4)  # ONNX Runtime rounds biases to 32 bits
    assert session.run(None, {"image": tiles[0][:, :, :16]})[0].shape == (1, 3, 16, 32, 32)
