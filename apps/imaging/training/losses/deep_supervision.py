"""Deep supervision as nnU-Net's (Isensee et al., Nature Methods 18, 203 (2021)): coarser levels predict classes too.

Each level of the decoder but the coarsest has a head, a 1x1x1 convolution, whose logits are compared with the classes
on its own grid. The losses are weighted by 1, 1/2, 1/4 ..., divided by their sum. Heads of coarser levels have no part
in the network's output: they are not exported, and are dropped (MONAI's networks) or kept unused (nnU-Net's) where
weights are written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from apps.imaging.models.networks import nnunet
from apps.imaging.training.losses.labels import BatchDiceCrossEntropy, DiceCrossEntropy
from common.errors import UsageError
from common.training.gradcache import Batch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NETWORKS = ("dynunet", *nnunet.NETWORKS)
"""Networks that have a decoder of one block for each level."""
HEADS = "coarse_heads"
"""Name of the heads in a network that has none of its own for coarser levels."""
FEWEST = 4
"""Levels of a network: of the decoder's, one fewer, the coarsest is left out, and another one must remain."""
Stride = tuple[int, int, int]


def strides(name: str, arguments: Mapping[str, Any]) -> list[Stride]:
    """Voxels of the patch along each axis for one voxel of each supervised level, the finest first.

    Raises
    ------
    UsageError
        A network without deep supervision, or with too few levels.
    """
    if name not in NETWORKS:
        raise UsageError(f"--set deep_supervision=on: {name} does not have it; {', '.join(NETWORKS)} do")
    levels = [level if isinstance(level, list) else [level] * 3 for level in arguments["strides"]]
    if len(levels) < FEWEST:
        raise UsageError(f"--set deep_supervision=on: {name} needs at least {FEWEST} levels, and has {len(levels)}")
    cumulated = [
        [prod(level[axis] for level in levels[: count + 1]) for axis in range(3)] for count in range(len(levels))
    ]
    return [(x, y, z) for x, y, z in cumulated[:-2]]


def attach(name: str, network: "torch.nn.Module", arguments: Mapping[str, Any]) -> None:
    """Let a network return the logits of all supervised levels in training, the finest first; in place.

    In evaluation it returns its logits as before.
    """
    heads = _heads(name, network, arguments)
    blocks = list(network.decoder.stages if name in nnunet.NETWORKS else network.upsamples)  # type: ignore[arg-type, union-attr]
    found: dict[int, Tensor] = {}

    def keep(level: int) -> Callable[..., None]:
        def hook(block: "torch.nn.Module", inputs: object, output: "Tensor") -> None:
            if network.training:
                found[level] = output

        return hook

    for level in range(len(heads)):
        blocks[-2 - level].register_forward_hook(keep(level))
    plain = network.forward

    def forward(image: "Tensor") -> "Tensor | tuple[Tensor, ...]":
        logits: Tensor = plain(image)
        if not network.training:
            return logits
        return logits, *(head(found.pop(level)) for level, head in enumerate(heads))

    vars(network)["forward"] = forward


def _heads(name: str, network: "torch.nn.Module", arguments: Mapping[str, Any]) -> "list[torch.nn.Module]":
    """Heads of the coarser levels, the finest of them first: nnU-Net's own, or new ones."""
    import torch

    coarser = len(strides(name, arguments)) - 1
    if name in nnunet.NETWORKS:
        own = list(network.decoder.seg_layers)[-2 : -2 - coarser : -1]  # type: ignore[arg-type, union-attr]
        for head in own:
            head.requires_grad_(True)
        return own
    device = next(network.parameters()).device
    classes, features = arguments["out_channels"], arguments["filters"][1 : 1 + coarser]
    new = torch.nn.ModuleList([torch.nn.Conv3d(count, classes, 1, device=device) for count in features])
    network.add_module(HEADS, new)
    return list(new)


def of_inference(weights: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The weights of a network without the heads that ``attach`` has added to it."""
    return {name: tensor for name, tensor in weights.items() if not name.startswith(f"{HEADS}.")}


def supervised(
    labels: DiceCrossEntropy | BatchDiceCrossEntropy, levels: Sequence[Stride]
) -> "DeeplySupervised | BatchDeeplySupervised":
    """The loss of all levels.

    Parameters
    ----------
    labels
        The loss of one level.
    levels
        As ``strides`` returns them.
    """
    halved = [0.5**level for level in range(len(levels))]
    weights = tuple(weight / sum(halved) for weight in halved)
    if isinstance(labels, BatchDiceCrossEntropy):
        return BatchDeeplySupervised(labels, weights, tuple(levels))
    return DeeplySupervised(labels, weights, tuple(levels))


def _on_grids(batch: Batch, levels: Sequence[Stride]) -> Iterator[Batch]:
    """Yield the batch with the classes on each level's grid: those nearest to the middle of its voxels."""
    for x, y, z in levels:
        yield [batch[0], batch[1][:, x // 2 :: x, y // 2 :: y, z // 2 :: z].contiguous()]


@dataclass(frozen=True, slots=True)
class DeeplySupervised:
    """A loss that is a sum over samples, of each level."""

    labels: DiceCrossEntropy
    weights: tuple[float, ...]
    levels: tuple[Stride, ...]

    def counts(self, batch: Batch) -> "tuple[Tensor, ...]":
        """Denominators of each level's loss, one level after the other."""
        return tuple(count for one in _on_grids(batch, self.levels) for count in self.labels.counts(one))

    def sums(self, outputs: "tuple[Tensor, ...]", batch: Batch) -> "tuple[Tensor, ...]":
        """Weighted sums of each level's loss."""
        each = zip(outputs, _on_grids(batch, self.levels), self.weights, strict=True)
        return tuple(weight * part for logits, one, weight in each for part in self.labels.sums(logits, one))


@dataclass(frozen=True, slots=True)
class BatchDeeplySupervised:
    """A loss that couples the samples, of each level."""

    labels: BatchDiceCrossEntropy
    weights: tuple[float, ...]
    levels: tuple[Stride, ...]

    def rows(self, outputs: "tuple[Tensor, ...]", batch: Batch) -> "tuple[Tensor, ...]":
        """Rows of each level's loss, one level after the other."""
        each = zip(outputs, _on_grids(batch, self.levels), strict=True)
        return tuple(row for logits, one in each for row in self.labels.rows(logits, one))

    def facts(self, batch: Batch) -> "tuple[Tensor, ...]":
        """Facts of each level's loss."""
        return tuple(fact for one in _on_grids(batch, self.levels) for fact in self.labels.facts(one))

    def value(self, rows: "tuple[Tensor, ...]", facts: "tuple[Tensor, ...]") -> "Tensor":
        """The batch's weighted loss from the rows and facts of all its samples."""
        import torch

        count, parts = len(rows) // len(self.weights), len(facts) // len(self.weights)
        values = [
            weight * self.labels.value(rows[level * count :][:count], facts[level * parts :][:parts])
            for level, weight in enumerate(self.weights)
        ]
        return torch.stack(values).sum()
