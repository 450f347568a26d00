"""Write a model as one ONNX file that says what it expects and what it answers."""

import json
from pathlib import Path
from typing import Any

from apps.imaging.models.model_folder import ImagingModel
from common.engines.base import NETWORK, WEIGHTS
from common.files import atomic_file


def describe(model: ImagingModel) -> dict[str, str]:
    """The file's metadata: each field of ``model.json`` that another program needs, as JSON.

    Parameters
    ----------
    model
        The model.

    Returns
    -------
    dict
        ``labels``, ``channels``, ``spacing`` (mm), ``orientation``, ``intensity`` of each channel
        (``apps.imaging.volumes.intensity``), ``patch`` (voxels) and ``convention``.
    """
    fields: dict[str, Any] = {
        "labels": {str(label.value): label.name for label in model.labels},
        "channels": model.channels,
        "spacing": model.spacing,
        "orientation": model.orientation,
        "intensity": [[dict(one) for one in operations] for operations in model.intensities],
        "patch": model.patch,
        "convention": model.convention,
    }
    return {name: json.dumps(value) for name, value in fields.items()}


def write_onnx(model: ImagingModel, path: Path, precision: str = "float32") -> None:
    """Write the network with its final convolution, which a model folder keeps apart.

    Parameters
    ----------
    model
        The model.
    path
        The file. Its network maps ``image``, float32 of shape (batch, channels, x, y, z) after ``intensity``, to
        ``logits``, float32 of shape (batch, output channels, x, y, z).
    precision
        ``"int8"``: with the quantisation of the model's int8 network.

    Raises
    ------
    BadInput
        An int8 network that ONNX cannot express.
    """
    import onnx
    from onnx import helper, numpy_helper
    from safetensors.numpy import load_file

    network = onnx.load(str(model.directory / NETWORK))
    graph = network.graph
    _name_once(graph)
    if precision == "int8":
        from apps.imaging.exporters.qdq import quantise_graph

        quantise_graph(network, model.directory)
    if model.head is not None:
        tensors = load_file(model.directory / WEIGHTS)
        features = graph.output.pop()
        for name in ("weight", "bias"):
            array = tensors[model.head[name]].astype("float32")
            graph.initializer.append(numpy_helper.from_array(array, f"head.{name}"))
        graph.node.append(helper.make_node("Conv", [features.name, "head.weight", "head.bias"], ["logits"]))
        sides = [dim.dim_param or dim.dim_value for dim in features.type.tensor_type.shape.dim]
        sides[1] = len(tensors[model.head["bias"]])
        graph.output.append(helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, sides))
    helper.set_model_props(network, {**describe(model), "precision": json.dumps(precision)})
    onnx.checker.check_model(network)
    with atomic_file(path) as unfinished:
        unfinished.write_bytes(network.SerializeToString())


def _name_once(graph: Any) -> None:
    """Give equal weights one name: the exporter gives them several, of which ONNX Runtime 1.32 loses one."""
    weights = {tensor.name for tensor in graph.initializer}
    same = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity" and node.input[0] in weights
    }
    kept = [node for node in graph.node if not same.keys() & set(node.output)]
    for node in kept:
        node.input[:] = [same.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)
