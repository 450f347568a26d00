"""Steps that anyone might write, and what a fresh process holds while it runs one: ``python steps.py tame NAME...``."""

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Made = tuple[Callable[[Any], object], Any]
"""A step and its batch."""


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(512, 2048), nn.ReLU(), nn.Dropout(0.1), nn.Linear(2048, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


def volume_network() -> nn.Module:
    def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, stride, padding=1), nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU()
        )

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.down, self.deep = block(1, 16), block(16, 32, 2), block(32, 32)
            self.up, self.fine, self.head = nn.ConvTranspose3d(32, 16, 2, 2), block(32, 16), nn.Conv3d(16, 3, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            wide = self.stem(image)
            deep = self.up(self.deep(self.down(wide)))
            return self.head(self.fine(torch.cat([wide, deep], 1)))

    return Network()


def _batch(network: str) -> tuple[torch.Tensor, torch.Tensor]:
    if network == "perceptron":
        return torch.zeros(4096, 512), torch.zeros(4096, dtype=torch.int64)
    return torch.zeros(2, 1, 48, 48, 48), torch.zeros(2, 48, 48, 48, dtype=torch.int64)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"perceptron": perceptron, "volume": volume_network}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.001),
}
NAMES = tuple(f"{network}-{how}" for network in NETWORKS for how in (*OPTIMIZERS, "inference"))


def make(name: str) -> Made:
    """``perceptron-adam``, ``volume-inference``, ..."""
    network, how = name.split("-")
    module, batch = NETWORKS[network](), _batch(network)
    if how == "inference":

        def infer(batch: Any) -> None:
            with torch.no_grad():
                module(batch[0])

        return infer, batch
    optimizer = OPTIMIZERS[how](module.parameters())

    def train(batch: Any) -> float:
        images, classes = batch
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(images), classes)
        loss.backward()
        optimizer.step()
        return loss.item()

    return train, batch


def main(name: str, allocator: str) -> None:
    """Print the bytes that making and running a step adds to a process which has loaded PyTorch."""
    from common.api.estimate import load_training
    from common.memory.costs import operators
    from common.memory.process import glibc
    from common.memory.process.meter import lifetime_peak, reset_peak, resident

    if allocator == "tame":
        glibc.pin_thresholds()
    operators.warm_up() if name.endswith("inference") else load_training()
    glibc.trim()
    base = resident()
    reset_peak()
    step, batch = make(name)
    for _ in range(3):
        step(batch)
    print(lifetime_peak() - base)


if __name__ == "__main__":
    import torch._dynamo  # every optimiser loads it

    assert torch._dynamo
    for each in sys.argv[2:]:  # each in a fork of this process, which has loaded PyTorch and run none of it
        if (process := os.fork()) == 0:
            main(each, sys.argv[1])
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(process, 0)[1] == 0, each
