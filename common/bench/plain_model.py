"""Compare the textbook memory estimate of a small CNN with the predicted and the measured peak of its training step.

``python -m common.bench.plain_model`` prints the table of ``docs/memory-model.md``: three 3x3 convolutions of 16
filters, each pooled, a dense layer of 16, a softmax of 10; on 28x28 grey and on 32x32 colour images, in float32.
"""

import itertools
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from common.bench import prediction
from common.bench.prediction import Configuration, Grid
from common.memory.costs.store import CostStore
from common.memory.footprint import plain_model
from common.memory.process.budget import MIB

if TYPE_CHECKING:
    from torch import nn

    from common.memory.costs.trace import Prepared

IMAGES = ((1, 28), (3, 32))
"""Channels and side: MNIST, CIFAR-10."""
BATCHES = (100, 1000)
FILTERS, DENSE, CLASSES = 16, 16, 10
FLOAT = 4


def classic(channels: int, side: int) -> "nn.Sequential":
    """Build the network for square images of ``side`` pixels."""
    from torch import nn

    layers: list[nn.Module] = []
    for inputs in (channels, FILTERS, FILTERS):
        layers += [nn.Conv2d(inputs, FILTERS, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(FILTERS * (side // 8) ** 2, DENSE), nn.ReLU(), nn.Linear(DENSE, CLASSES)
    )


def parameters(channels: int, side: int) -> int:
    """Count *n*, the weights and biases of all layers.

    Examples
    --------
    >>> parameters(1, 28), parameters(3, 32)
    (7290, 9370)
    """
    convolutions = sum((9 * inputs + 1) * FILTERS for inputs in (channels, FILTERS, FILTERS))
    return convolutions + (FILTERS * (side // 8) ** 2 + 1) * DENSE + (DENSE + 1) * CLASSES


def values(channels: int, side: int) -> int:
    """Count *d*, the values of one sample: the input and the outputs of all convolutions, poolings and dense layers.

    Examples
    --------
    >>> values(1, 28), values(3, 32)
    (21338, 29978)
    """
    grids = [side // 2**halvings for halvings in range(4)]
    outputs: int = sum(FILTERS * (before**2 + after**2) for before, after in itertools.pairwise(grids))
    return channels * side**2 + outputs + DENSE + CLASSES


def step(*, channels: int, side: int, batch: int) -> "Prepared":
    """Prepare one training step with Adam."""
    import torch

    network = classic(channels, side)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    images, classes = torch.zeros(batch, channels, side, side), torch.zeros(batch, dtype=torch.int64)

    def one() -> None:
        torch.nn.functional.cross_entropy(network(images), classes).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return network, optimizer, one


def warm_up() -> None:
    """Run one tiny step."""
    step(channels=1, side=8, batch=2)[2]()


def grid() -> Grid:
    """Return the grid: both image sizes at two batch sizes."""
    cases = [
        Configuration.of(
            {"images": f"{side}x{side}x{channels}", "batch": batch},
            "common.bench.plain_model:step",
            {"channels": channels, "side": side, "batch": batch},
        )
        for channels, side in IMAGES
        for batch in BATCHES
    ]

    def draw(source: random.Random) -> Configuration:
        return source.choice(cases)

    return Grid("plain-model", cases, draw, "common.bench.plain_model:warm_up", ("torch",), huge_pages=False)


def main() -> int:
    """Print the table."""
    chosen = grid()
    os.environ.update(chosen.environment)
    columns = ("images", "batch", "n*s + N*d*k", *prediction.TERMS, "predicted", "measured")
    sys.stdout.write(" | ".join(columns) + "\n" + " | ".join("---" for _ in columns) + "\n")
    with tempfile.TemporaryDirectory() as empty:
        probes = [chosen.base, *map(chosen.traced, chosen.configurations)]
        costs = CostStore(Path(empty)).collect(probes, ceiling=None)
    sizes = [(channels, side, batch) for channels, side in IMAGES for batch in BATCHES]
    for (channels, side, batch), each in zip(sizes, chosen.configurations, strict=True):
        plain = plain_model(
            parameters=parameters(channels, side),
            parameter_bytes=FLOAT,
            samples=batch,
            values_per_sample=values(channels, side),
            value_bytes=FLOAT,
        )
        line = prediction.compare(each, chosen, costs)
        cells = (plain, *(line["terms"][name] for name in prediction.TERMS), line["predicted"], line["measured"])
        row = [f"{side}x{side}x{channels}", str(batch), *(f"{size / MIB:.1f}" for size in cells)]
        sys.stdout.write(" | ".join(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
