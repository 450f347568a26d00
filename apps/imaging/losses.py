"""Dice plus cross-entropy, as sums over samples and voxels so that accumulation is exact (``common.training.step``)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.training.step import Batch

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = 255
"""A voxel with this class counts neither in the Dice term nor in the cross-entropy."""
_SMOOTH = 1e-5


@dataclass(frozen=True, slots=True)
class DiceCrossEntropy:
    """Soft Dice of each sample and foreground class, averaged, plus the voxels' mean cross-entropy.

    Without ignored voxels it equals ``monai.losses.DiceCELoss(softmax=True, include_background=False)``.
    """

    def counts(self, batch: Batch) -> tuple["Tensor", "Tensor"]:
        """Samples, and voxels that count."""
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
        import torch

        target = batch[1]
        log_probability = torch.log_softmax(outputs, 1)
        del outputs
        classes = log_probability.shape[1]
        counted = target != IGNORED
        truth = target.where(counted, 0).long()
        picked = log_probability.gather(1, truth[:, None])[:, 0]
        entropy = -(picked * counted).sum()

        probability = log_probability[:, 1:].exp() * counted[:, None]
        foreground = torch.arange(1, classes, device=target.device).view(1, -1, 1, 1, 1)
        member = target[:, None] == foreground
        axes = (2, 3, 4)
        both = torch.where(member, probability, 0).sum(axes)
        either = probability.sum(axes) + member.sum(axes)
        dice = 1 - (2 * both + _SMOOTH) / (either + _SMOOTH)
        return dice.mean(1).sum(), entropy
