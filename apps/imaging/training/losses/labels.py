"""Dice plus cross-entropy, in forms for which gradient accumulation is exact (``common.training``).

Dice of each sample is a sum over samples. Dice of the batch, in which other patches make up for a class that is rare in
one, couples the samples, but only through three numbers for each sample and class.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.training.gradcache import Batch

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = 255
"""A voxel with this class counts neither in the Dice term nor in the cross-entropy."""

_SMOOTH = 1e-5


def dice_cross_entropy(dice: str, balance: float = 0.0) -> "DiceCrossEntropy | BatchDiceCrossEntropy":
    """The loss whose Dice is of each ``"sample"`` or of the ``"batch"``.

    Parameters
    ----------
    balance
        Power of a class's share of its sample by which the cross-entropy of its voxels is divided; 0: all voxels count
        alike, 1: all classes do. The gradient of Dice vanishes where a class's probability is near zero, so a small
        class is found by the cross-entropy first.
    """
    return BatchDiceCrossEntropy(balance) if dice == "batch" else DiceCrossEntropy(balance)


@dataclass(frozen=True, slots=True)
class DiceCrossEntropy:
    """Soft Dice of each sample and foreground class, averaged, plus the voxels' mean cross-entropy.

    Without ignored voxels it equals ``monai.losses.DiceCELoss(softmax=True, include_background=False)``.
    """

    balance: float = 0.0
    """As in ``dice_cross_entropy``."""

    def counts(self, batch: Batch) -> tuple["Tensor", "Tensor"]:
        """Number of samples, and of voxels that are not ignored."""
        import torch

        target = batch[1]
        return target.new_tensor(len(target), dtype=torch.float32), (target != IGNORED).sum()

    def sums(self, outputs: "Tensor", batch: Batch) -> tuple["Tensor", "Tensor"]:
        """Sum over samples of the mean Dice loss; sum over voxels of the cross-entropy.

        Parameters
        ----------
        outputs
            Logits (B, C, x, y, z).
        batch
            Images, and classes (B, x, y, z) as uint8, 0 to C-1 or ``IGNORED``.
        """
        both, either, entropy = _of_samples(outputs, batch[1], self.balance)
        return _dice(both, either).mean(1).sum(), entropy.sum()


@dataclass(frozen=True, slots=True)
class BatchDiceCrossEntropy:
    """Soft Dice of each foreground class over all voxels of the batch, plus their mean cross-entropy.

    Without ignored voxels it equals ``DiceCELoss(softmax=True, include_background=False, batch=True)``; nnU-Net's
    default is of this kind.
    """

    balance: float = 0.0
    """As in ``dice_cross_entropy``."""

    def rows(self, outputs: "Tensor", batch: Batch) -> "tuple[Tensor, ...]":
        """Soft overlap and soft sizes of each sample and class (B, C-1), summed cross-entropy of each sample (B,)."""
        return _of_samples(outputs, batch[1], self.balance)

    def facts(self, batch: Batch) -> "tuple[Tensor, ...]":
        """Number of voxels of each sample (B,) that are not ignored."""
        return ((batch[1] != IGNORED).sum((1, 2, 3)),)

    def value(self, rows: "tuple[Tensor, ...]", facts: "tuple[Tensor, ...]") -> "Tensor":
        """The batch's loss from the rows and facts of all its samples."""
        both, either, entropy = (row.sum(0) for row in rows)
        return _dice(both, either).mean() + entropy / facts[0].sum().clamp(min=1)


def _dice(both: "Tensor", either: "Tensor") -> "Tensor":
    return 1 - (2 * both + _SMOOTH) / (either + _SMOOTH)


def _of_samples(logits: "Tensor", target: "Tensor", balance: float) -> "tuple[Tensor, Tensor, Tensor]":
    """Soft overlap (B, C-1), soft sizes' sum (B, C-1) and summed cross-entropy (B,) of each sample."""
    from apps.imaging.training.losses.soft_counts import SoftCounts

    classes = logits.shape[1]
    counted = target != IGNORED
    truth = target.where(counted, 0)
    present = counted.to(logits.dtype)
    weights = present if not balance else _balanced(truth.long(), present, classes, balance)
    both, soft, entropy = SoftCounts.apply(logits, truth, present, weights)  # type: ignore[no-untyped-call]
    return both, soft + _sizes(truth.long(), present, classes)[:, 1:], entropy


def _sizes(truth: "Tensor", present: "Tensor", classes: int) -> "Tensor":
    """Voxels of each sample and class (B, C) that count."""
    return present.new_zeros(len(truth), classes).scatter_add_(1, truth.flatten(1), present.flatten(1))


def _balanced(truth: "Tensor", present: "Tensor", classes: int, balance: float) -> "Tensor":
    """Weights of the voxels (B, x, y, z) by the class's share of its sample, on average 1 over the counted voxels."""
    sizes = _sizes(truth, present, classes)
    weights = sizes.clamp(min=1) ** -balance
    weights *= sizes.sum(1, keepdim=True) / (weights * sizes).sum(1, keepdim=True).clamp(min=1e-12)
    return weights.gather(1, truth.flatten(1)).view_as(truth) * present
