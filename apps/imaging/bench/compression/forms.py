"""Smaller forms of the shipped model that are no options of ``imaging compress``, because they save too little.

``python -m apps.imaging.bench.compression.forms NAME MODEL OUTPUT`` writes a model folder.

- ``sparse-80``, ``sparse-2of4``: the smallest weights of each convolution are zero, 80 % of them, or two of every four
  input channels at a voxel of the kernel. A file could hold a bit for each weight and the others in half precision.
- ``tied``: convolutions of one shape share one kernel, the mean of theirs, across blocks and levels.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.imaging.compression.shrinking import WRITTEN, exported_tile
from apps.imaging.models.model_folder import CARD, read_manifest, read_model, torch_network, write_model
from apps.imaging.models.networks import registry
from apps.imaging.models.onnx_export import export_onnx
from common.compression.networks import reshaping
from common.engines.base import NETWORK

SHARE, KEPT, OF = 0.8, 2, 4


def zeroed(weight: Tensor, form: str) -> Tensor:
    """A kernel (O, I, x, y, z) with zeros in place of its smallest weights."""
    if form == "sparse-80":
        places = weight.abs().flatten().argsort()[: int(SHARE * weight.numel())]
        flat = weight.clone().flatten()
        flat[places] = 0
        return flat.reshape(weight.shape)
    if weight.shape[1] % OF:
        return weight
    last = weight.movedim(1, -1)
    groups = last.reshape(*last.shape[:-1], -1, OF)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, groups.abs().topk(KEPT, -1).indices, True)
    sparse: Tensor = (groups * kept).flatten(-2).movedim(-1, 1).contiguous()
    return sparse


def tied(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """The convolutions that share the kernel of an earlier one of their shape, and which."""
    first: dict[tuple[Any, ...], str] = {}
    shared = {}
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv3d) and layer.kernel_size == (3, 3, 3):
            kind = (layer.weight.shape, layer.stride, layer.bias is None)
            if kind in first:
                shared[name] = first[kind]
            first.setdefault(kind, name)
    return shared


def write(form: str, source: Path, output: Path) -> dict[str, Any]:
    """Write a model folder in one of the forms; returns the bytes of its weights as they are, and sparse."""
    model, network = read_model(source), torch_network(source, "logits")
    arguments = dict(model.arguments)
    kernels = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv3d) and layer.kernel_size != (1, 1, 1)
    }
    with torch.no_grad():
        if form == "tied":
            shared = tied(dict(network.named_modules()))
            for name in set(shared.values()):
                alike = [name, *(one for one, other in shared.items() if other == name)]
                kernels[name].weight.copy_(torch.stack([kernels[one].weight for one in alike]).mean(0))
            arguments[registry.RESHAPED] = {name: {reshaping.SAME: other} for name, other in shared.items()}
            reshaping.reshape(network, arguments[registry.RESHAPED])
        else:
            for layer in kernels.values():
                layer.weight.copy_(zeroed(layer.weight, form))
    state = {name: tensor.detach().half().numpy() for name, tensor in registry.weights(network).items()}
    output.mkdir(parents=True, exist_ok=True)
    export_onnx(model.network, network, output / NETWORK, tile=exported_tile(model))
    write_model(
        output,
        network=model.network,
        arguments=arguments,
        state=state,
        channels=model.channels,
        spacing=model.spacing,
        orientation=model.orientation,
        intensity=model.intensity,
        patch=model.patch,
        head=model.head,
        labels=model.labels,
        card=(source / CARD).read_text("utf-8") + f"\nIn the form {form}.\n",
        extra={key: value for key, value in read_manifest(source).items() if key not in WRITTEN},
    )
    bits = sum(-(-tensor.size // 8) for tensor in state.values())
    others = sum(int(np.count_nonzero(tensor)) for tensor in state.values())
    dense = sum(tensor.nbytes for tensor in state.values())
    return {"dense_bytes": dense, "sparse_bytes": bits + 2 * others, "parameters": dense // 2, "nonzero": others}


def seconds(model: Path, side: int = 64, runs: int = 5) -> dict[str, float]:
    """Processor seconds of a tile with OpenVINO, and the same where it may decompress sparse weights; by turns."""
    import time

    from common.engines.openvino import import_openvino

    ov = import_openvino()
    network = ov.Core().read_model(model / NETWORK)
    network.reshape([1, 1, side, side, side])
    tile = np.sin(np.arange(side**3, dtype=np.float32)).reshape(1, 1, side, side, side)
    plain = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    sparse = {**plain, "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 0.5}
    compiled = {"dense": ov.Core().compile_model(network, "CPU", plain)}
    compiled["sparse"] = ov.Core().compile_model(network, "CPU", sparse)
    spent: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(1 + runs):
        for name, one in compiled.items():
            began = time.process_time()
            one(tile)
            spent[name].append(time.process_time() - began)
    return {name: min(values[1:]) for name, values in spent.items()}


def main(words: Sequence[str]) -> int:
    """Write one form and print its bytes and seconds."""
    form, source, output = words[0], Path(words[1]), Path(words[2])
    shutil.rmtree(output, ignore_errors=True)
    answer = write(form, source, output)
    sys.stdout.write(json.dumps(answer | {"seconds": seconds(output)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
