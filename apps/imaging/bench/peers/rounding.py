"""How far the engines' float32 is from float64 on one tile of noise.

``python -m apps.imaging.bench.peers.rounding MODEL X,Y,Z`` prints, for each engine, the mean and the largest difference
of its logits from PyTorch's in float64, as shares of the largest logit. Weights that are random enlarge what rounding
does from layer to layer; where two engines are as far from float64, their labels differ for no other reason.
"""

import json
import sys
from pathlib import Path

import numpy as np

from apps.imaging.importers.convert import converted_model
from apps.imaging.models.model_folder import TORCH_NETWORK, read_model, torch_network
from common.engines.base import Tile
from common.engines.registry import open_engine
from common.memory.process.budget import GIB, MemoryBudget
from common.model_folder import MANIFEST

ENGINES = ("torch", "openvino", "onnxruntime")
CEILING = 16 * GIB
"""Of the conversion, if the model has not been converted before."""


def differences(directory: Path, tile: Tile, threads: int) -> dict[str, dict[str, float]]:
    """Compare the engines on one tile.

    Parameters
    ----------
    directory
        A model folder, or one that ``imaging infer`` converts.

    Returns
    -------
    dict
        By engine ``mean`` and ``largest``, as shares of the largest logit.
    """
    import torch

    if not (directory / MANIFEST).is_file():
        directory = converted_model(directory, MemoryBudget(CEILING))
    model = read_model(directory)
    found, noise = {}, None
    for name in ENGINES:
        engine = open_engine(
            directory,
            name=name,
            precision="float32",
            tile=tile,
            batch=1,
            threads=threads,
            output="logits",
            head=model.head,
            builder=TORCH_NETWORK,
            device="cpu",
            heap=False,
        )
        if noise is None:
            noise = np.random.default_rng(0).standard_normal((1, engine.in_channels, *tile)).astype(np.float32)
        found[name] = np.array(engine(noise))
    network = torch_network(directory, "logits")
    with torch.inference_mode():
        exact = network.double().eval()(torch.from_numpy(noise).double()).numpy()
    scale = np.abs(exact).max()
    off = {name: np.abs(values - exact) / scale for name, values in found.items()}
    return {name: {"mean": float(each.mean()), "largest": float(each.max())} for name, each in off.items()}


if __name__ == "__main__":
    sizes = [int(size) for size in sys.argv[2].split(",")]
    print(json.dumps(differences(Path(sys.argv[1]), (sizes[0], sizes[1], sizes[2]), 2)))
