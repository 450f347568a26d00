"""What a training is asked for, and the step that does it: the same for its price and for its run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.imaging.models.networks import registry
from apps.imaging.training.dataset import Dataset, LabelledCase
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
"""Share of a tile that the next one covers again where held-out cases are looked at."""
PATCH_VOXELS = 96**3
"""A patch that the user did not choose has no more voxels."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the result; a checkpoint of another recipe is not continued."""

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

    def rate(self, progress: float) -> float:
        """Learning rate at a share of the training: a short linear warm-up, then a cosine to zero."""
        warm = min(1.0, (progress + 1e-9) / WARM_UP_SHARE)
        return self.learning_rate * min(warm, 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


@dataclass(frozen=True, slots=True)
class Job:
    """One training."""

    dataset: Dataset
    training: Sequence[LabelledCase]
    held_out: Sequence[LabelledCase]
    recipe: Recipe
    operations: Sequence[Mapping[str, Any]]
    output: Path
    skip_bad: bool
    resume: bool
    command: str
    """As it was typed, without paths, for the card."""


def make_step(
    recipe: Recipe, *, micro_batch: int, amp: str, checkpoint: str, step_in_backward: bool = False, device: str = HOST
) -> tuple["torch.nn.Module", "torch.optim.Optimizer", TrainingStep]:
    """Network, optimiser and step; also what ``apps.imaging.training.traced_step`` traces, so that both are the
    same."""
    network = registry.build(recipe.network, recipe.arguments)
    if device != HOST:  # fake tensors, on which this is traced, cannot be moved
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
    """The median case, rounded up to what the network can halve, and not more voxels than 96 cubed."""
    shapes = np.array([case.shape(dataset.spacing) for case in dataset.cases])
    step = math.lcm(step, 8)
    patch = [max(step, math.ceil(size / step) * step) for size in np.median(shapes, 0)]
    while math.prod(patch) > PATCH_VOXELS:
        patch[int(np.argmax(patch))] -= step
    return patch[0], patch[1], patch[2]
