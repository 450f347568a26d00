"""What a training step keeps of its activations, by their form: a table from the tracer that prices every training.

``python -m apps.imaging.bench.compression.activations [NETWORK]``. A step of one patch of 64 cubed, in float32 unless a
row says otherwise: bytes of the tensors that are alive at the peak, beside parameters, gradients and the optimiser's
state, and the largest workspace of an operator.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from apps.imaging.bench.one_step import one_step
from apps.imaging.training.recipe import make_step
from common.memory.costs import trace

SIDE = 64
IN_PLACE = (nn.ReLU, nn.LeakyReLU)
FORMS: Mapping[str, Mapping[str, Any]] = {
    "as built": {},
    "ReLU, in place": {"activation": lambda: nn.ReLU(inplace=True)},
    "ReLU, a tensor of its own": {"activation": nn.ReLU},
    "LeakyReLU, in place": {"activation": lambda: nn.LeakyReLU(0.01, inplace=True)},
    "PReLU": {"activation": nn.PReLU},
    "SiLU": {"activation": nn.SiLU},
    "GELU": {"activation": nn.GELU},
    "as built, half of what can be saved recomputed": {"checkpoint": "4/8"},
    "as built, all of it recomputed": {"checkpoint": "8/8"},
    "as built, bfloat16": {"amp": "bf16"},
    "as built, bfloat16, all recomputed": {"amp": "bf16", "checkpoint": "8/8"},
}
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.GELU)


def replaced(network: nn.Module, activation: Any) -> nn.Module:
    """The network with other activations, in place."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ACTIVATIONS):
                setattr(module, name, activation())
    return network


def prepare(
    network: str, activation: Any = None, checkpoint: str = "none", amp: str = "off", side: int = SIDE
) -> "trace.Prepared":
    """Network, optimiser and step, as ``traced_step.step`` makes them."""
    recipe = one_step(network, {}, side=side)
    built, optimizer, step = make_step(recipe, micro_batch=1, amp=amp, checkpoint=checkpoint)
    if activation is not None:
        replaced(built, activation)
    images, classes = torch.zeros(1, 1, *recipe.patch), torch.zeros(1, *recipe.patch, dtype=torch.uint8)
    return built, optimizer, lambda: step([images, classes])


def table(network: str, side: int = SIDE) -> str:
    """The rows: form, MiB, and the share of ``as built``."""
    rows, whole = [], 0.0
    for form, options in FORMS.items():
        price = trace.price(lambda options=options: prepare(network, side=side, **options))  # type: ignore[misc]
        size = price["activations"] + price["workspace"]
        whole = whole or size
        rows.append(f"| {form} | {size / 2**20:.1f} | {size / whole:.2f} |")
    return "\n".join(rows)


def main(words: Sequence[str]) -> int:
    """Print the table of a network."""
    sys.stdout.write(table(words[0] if words else "segresnet") + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
