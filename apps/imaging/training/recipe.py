"""The recipe of a training, and the optimiser step that follows it: the same for the price and for the run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.imaging.models.networks import registry
from apps.imaging.training.data.dataset import Dataset
from apps.imaging.training.losses import deep_supervision
from apps.imaging.training.losses.distillation import DistillingStep, build_teacher, with_soft_labels
from apps.imaging.training.losses.labels import dice_cross_entropy
from apps.imaging.volumes.volume import Shape
from common.memory.process.cuda import HOST
from common.training import activation_checkpointing, optimizers, recomputation
from common.training.batch_norm import frozen_statistics
from common.training.distributed import sharding
from common.training.distributed.group import ALONE, Group
from common.training.recomputation import Segment
from common.training.step import TrainingStep

if TYPE_CHECKING:
    import torch

WARM_UP_SHARE = 0.025
"""Share of the training in which the learning rate rises to its full value."""
WARM_UP_STEPS = 1000
"""Most steps of that rise."""
POLYNOMIAL = 0.9
"""Power of the polynomial schedule (Isensee et al., Nature Methods 18, 203 (2021))."""
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
    balance: float = 0.0
    """Power of a class's share of its patch by which the cross-entropy of its voxels is divided."""
    schedule: str = "cosine"
    """How the learning rate falls: ``"cosine"``, ``"poly"`` as nnU-Net's, or not at all (``"constant"``)."""
    ema: float = 0.0
    """Decay of the weights' moving average, which is validated and written in their place; 0: none."""
    keep: str = "last"
    """The weights that are written: of the ``"last"`` step or of the ``"best"`` validation."""
    patience: int = 0
    """Validations without a better Dice after which the training ends; 0: it never ends early."""
    store: str = "float32"
    """Type of the numbers in which prepared images are kept."""
    init: str = ""
    """SHA-256 of the weights that the training starts from; empty: random ones."""
    synthesis: str = ""
    """SHA-256 of the class table by which images are synthesised; empty: they are read."""
    spacing: tuple[float, float, float] | None = None
    """Millimetres of the network's grid that the user chose; ``None``: they follow from the data."""
    normalisation: str = ""
    """SHA-256 of the operations on intensities that a file has; empty: they follow from the data."""
    teacher: Mapping[str, Any] | None = None
    """``network``, ``arguments`` and SHA-256 of the ``weights`` of the model whose predictions are soft labels;
    ``None``: there is none."""
    distillation: float = 1.0
    """Weight of the soft labels' term."""
    temperature: float = 2.0
    """By which logits are divided for the soft labels."""
    quantise: str = "off"
    """``"int8"``: convolutions see weights and inputs rounded to 8 bits, for a network that will be quantised."""
    deep_supervision: str = "off"
    """``"on"``: the loss has a term for each level of the decoder but the coarsest."""
    augment: str = "light"
    """How patches are augmented (``apps.imaging.training.data.augmentation``)."""

    def rate(self, progress: float, steps: int) -> float:
        """Learning rate after a share of the training, in [0, 1], and so many steps: a short linear warm-up, then the
        schedule.

        Cosine and polynomial, which is nnU-Net's, of power 0.9, fall to zero.
        """
        warm, left = max((progress + 1e-9) / WARM_UP_SHARE, steps / WARM_UP_STEPS), 1 - min(1.0, progress)
        falling = {"poly": left**POLYNOMIAL, "constant": 1.0, "cosine": 0.5 * (1 - math.cos(math.pi * left))}
        return float(self.learning_rate * min(1.0, warm, falling[self.schedule]))


def make_step(
    recipe: Recipe,
    *,
    micro_batch: int,
    amp: str,
    checkpoint: str,
    step_in_backward: bool = False,
    device: str = HOST,
    group: Group = ALONE,
    shared: bool = False,
) -> tuple["torch.nn.Module", "torch.optim.Optimizer", TrainingStep]:
    """Build network, optimiser and step; ``apps.imaging.training.traced_step`` traces the same.

    Parameters
    ----------
    micro_batch, amp, checkpoint, step_in_backward
        As the plan has them.
    device
        Device of the network; traced on fake tensors, which cannot be moved, it stays on the host.
    group
        The ranks that train it together.
    shared
        True if each of them has a part of the parameters and of the optimiser's states (``sharding``).
    """
    network = registry.build(recipe.network, recipe.arguments)
    registry.initialise(recipe.network, network)
    if recipe.quantise == "int8":
        from common.compression.networks import fake_quantisation

        fake_quantisation.round_in_training(network, but=registry.head_name(recipe.network, network))
    supervision = recipe.deep_supervision == "on"
    if device != HOST:
        network.to(device)
    blocks = registry.blocks(recipe.network, network)
    activation_checkpointing.apply(checkpoint, blocks, lambda: block_costs(recipe, network))
    if supervision:
        deep_supervision.attach(recipe.network, network, recipe.arguments)
    if shared:
        sharding.share_out(network, group, half=amp == "bf16")
    optimizer = optimizers.build(
        recipe.optimizer,
        network.parameters(),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    loss = dice_cross_entropy(recipe.dice, recipe.balance)
    common = (micro_batch, amp, recipe.clip)
    if recipe.teacher is None:
        levels = deep_supervision.strides(recipe.network, recipe.arguments) if supervision else []
        whole = deep_supervision.supervised(loss, levels) if levels else loss
        step = TrainingStep(network, optimizer, whole, *common, step_in_backward=step_in_backward, group=group)
        return network, optimizer, step
    soft = with_soft_labels(loss, recipe.distillation, recipe.temperature)
    teacher = build_teacher(recipe.teacher)
    if device != HOST:
        teacher.to(device)
    distilling = DistillingStep(
        network, optimizer, soft, *common, step_in_backward=step_in_backward, group=group, teacher=teacher
    )
    return network, optimizer, distilling


def block_costs(recipe: Recipe, network: "torch.nn.Module") -> list[Segment]:
    """What the parts of a forward pass keep and cost (``recomputation.measure``), on the smallest patch.

    All of them grow alike with the patch. Tensors without memory (``meta``) would bring 30 MiB of libraries.
    """
    import torch

    parameter = next(network.parameters())
    sides = registry.smallest_tile(recipe.network, recipe.arguments)
    image = parameter.new_zeros(1, recipe.arguments["in_channels"], *sides)
    with torch.enable_grad(), frozen_statistics(network):
        return recomputation.measure(network, registry.blocks(recipe.network, network), lambda: network(image))


def default_patch(dataset: Dataset, divisors: Shape) -> Shape:
    """The median case, with sides that the network can halve, and at most ``PATCH_VOXELS``.

    Parameters
    ----------
    divisors
        Numbers of which the network needs multiples, along each axis.
    """
    shapes = np.array([case.shape(dataset.spacing) for case in dataset.cases])
    # Multiples of 8, but along an axis that the network halves less often than others.
    steps = [math.lcm(one, 8) if one == max(divisors) else one for one in divisors]
    sizes = zip(np.median(shapes, 0), steps, strict=True)
    patch = [max(step, math.ceil(size / step) * step) for size, step in sizes]
    while math.prod(patch) > PATCH_VOXELS:
        longest = int(np.argmax(patch))
        patch[longest] -= steps[longest]
    return patch[0], patch[1], patch[2]
