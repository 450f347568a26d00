"""The recipe of a training, and the optimiser step that follows it: the same for the price and for the run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.imaging.models.networks import registry
from apps.imaging.training.dataset import Dataset
from apps.imaging.training.losses import dice_cross_entropy
from apps.imaging.volumes.volume import Shape
from common.memory.process.cuda import HOST
from common.training import activation_checkpointing, optimizers
from common.training.step import TrainingStep

if TYPE_CHECKING:
    import torch

WARM_UP_SHARE = 0.025
"""Share of the training in which the learning rate rises to its full value."""
OVERLAP = 0.5
"""Share of a tile that the next one covers again in validation."""
PATCH_VOXELS = 96**3
"""Most voxels of a patch that the user does not choose."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the result of a training, apart from its data."""

    network: str
    arguments: Mapping[str, Any]
    patch: Shape
    batch: int
    steps: int | None
    """``None``: until ``seconds`` have passed."""
    seconds: float | None
    learning_rate: float
    weight_decay: float
    clip: float
    mirror: str
    validation_cases: int
    fold: tuple[int, int] | None
    seed: int
    optimizer: str = optimizers.DEFAULT
    dice: str = "sample"
    init: str = ""
    """SHA-256 of the weights that the training starts from; empty: random ones."""

    def rate(self, progress: float) -> float:
        """Learning rate after a share of the training, in [0, 1]: a short linear warm-up, then a cosine to zero."""
        warm = min(1.0, (progress + 1e-9) / WARM_UP_SHARE)
        return self.learning_rate * min(warm, 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def make_step(
    recipe: Recipe, *, micro_batch: int, amp: str, checkpoint: str, step_in_backward: bool = False, device: str = HOST
) -> tuple["torch.nn.Module", "torch.optim.Optimizer", TrainingStep]:
    """Build network, optimiser and step; ``apps.imaging.training.traced_step`` traces the same.

    Parameters
    ----------
    micro_batch, amp, checkpoint, step_in_backward
        As the plan has them.
    device
        Device of the network; traced on fake tensors, which cannot be moved, it stays on the host.
    """
    network = registry.build(recipe.network, recipe.arguments)
    if device != HOST:
        network.to(device)
    activation_checkpointing.apply(checkpoint, registry.blocks(recipe.network, network))
    optimizer = optimizers.build(
        recipe.optimizer,
        network.parameters(),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    loss = dice_cross_entropy(recipe.dice)
    step = TrainingStep(network, optimizer, loss, micro_batch, amp, recipe.clip, step_in_backward=step_in_backward)
    return network, optimizer, step


def default_patch(dataset: Dataset, step: int) -> Shape:
    """The median case, with sides that the network can halve, and at most ``PATCH_VOXELS``.

    Parameters
    ----------
    step
        Number of which the network needs multiples.
    """
    shapes = np.array([case.shape(dataset.spacing) for case in dataset.cases])
    step = math.lcm(step, 8)
    patch = [max(step, math.ceil(size / step) * step) for size in np.median(shapes, 0)]
    while math.prod(patch) > PATCH_VOXELS:
        patch[int(np.argmax(patch))] -= step
    return patch[0], patch[1], patch[2]
