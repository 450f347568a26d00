"""Train a network on another one's predictions too: the soft labels of a larger network, the teacher.

To the loss of the labels comes the cross-entropy with the teacher's probabilities, both at a temperature (Hinton et
al., arXiv 1503.02531), of every voxel that counts. The teacher sees the patches that the network sees, in the same
micro-batches and precision, and keeps no graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from apps.imaging.training.losses.labels import IGNORED, BatchDiceCrossEntropy, DiceCrossEntropy
from common.training import amp
from common.training.gradcache import Batch
from common.training.oom_retry import repeated
from common.training.step import TrainingStep

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(slots=True)
class DistillingStep(TrainingStep):
    """A training step whose loss takes the teacher's logits as the last tensor of the batch.

    Attributes
    ----------
    teacher
        (B, Cin, x, y, z) -> (B, C, x, y, z), in evaluation mode and without gradients.
    """

    teacher: "torch.nn.Module | None" = field(default=None, kw_only=True)

    def __call__(self, batch: Batch) -> "Tensor":
        """Do one optimiser step on images and classes (see ``TrainingStep``)."""
        return TrainingStep.__call__(self, [*batch, repeated(partial(self._soft, batch[0]))])

    def _soft(self, images: "Tensor") -> "Tensor":
        import torch

        assert self.teacher is not None
        precision, size, logits = amp.precision(self.amp), self.micro_batch, []
        with torch.no_grad(), torch.autocast(images.device.type, precision, enabled=precision is not None):
            for start in range(0, len(images), size):
                logits.append(self.teacher(images[start : start + size]).float())
        return logits[0] if len(logits) == 1 else torch.cat(logits)


@dataclass(frozen=True, slots=True)
class Distillation:
    """Soft labels beside a loss that is a sum over samples."""

    labels: DiceCrossEntropy
    weight: float
    temperature: float

    def counts(self, batch: Batch) -> tuple["Tensor", ...]:
        """Denominators of the loss of the labels, and the number of voxels that count."""
        counts = self.labels.counts(batch)
        return *counts, counts[-1]

    def sums(self, outputs: "Tensor", batch: Batch) -> tuple["Tensor", ...]:
        """Sums of the loss of the labels, and of the voxels' cross-entropies with the teacher."""
        soft = _soft_entropy(outputs, batch, self.temperature).sum()
        return *self.labels.sums(outputs, batch), self.weight * soft


@dataclass(frozen=True, slots=True)
class BatchDistillation:
    """Soft labels beside a loss that couples the samples."""

    labels: BatchDiceCrossEntropy
    weight: float
    temperature: float

    def rows(self, outputs: "Tensor", batch: Batch) -> "tuple[Tensor, ...]":
        """Rows of the loss of the labels, and each sample's cross-entropy with the teacher (B,)."""
        return *self.labels.rows(outputs, batch), _soft_entropy(outputs, batch, self.temperature)

    def facts(self, batch: Batch) -> "tuple[Tensor, ...]":
        """Those of the loss of the labels: the number of voxels of each sample that count."""
        return self.labels.facts(batch)

    def value(self, rows: "tuple[Tensor, ...]", facts: "tuple[Tensor, ...]") -> "Tensor":
        """The batch's loss from the rows and facts of all its samples."""
        soft = rows[-1].sum() / facts[0].sum().clamp(min=1)
        return self.labels.value(rows[:-1], facts) + self.weight * soft


def with_soft_labels(
    labels: "DiceCrossEntropy | BatchDiceCrossEntropy", weight: float, temperature: float
) -> Distillation | BatchDistillation:
    """The loss of labels and of a teacher's predictions.

    Parameters
    ----------
    weight
        Of the teacher's term, against 1 of the labels' terms.
    temperature
        By which logits are divided before their softmax; the term is multiplied by its square, so that its gradient
        stays as large.
    """
    if isinstance(labels, BatchDiceCrossEntropy):
        return BatchDistillation(labels, weight, temperature)
    return Distillation(labels, weight, temperature)


def _soft_entropy(logits: "Tensor", batch: Batch, temperature: float) -> "Tensor":
    """Cross-entropy of each sample (B,) with the teacher's probabilities, the last tensor of the batch."""
    import torch

    target, teacher = batch[1], batch[-1]
    wanted = torch.softmax(teacher / temperature, 1)
    entropy = -(wanted * torch.log_softmax(logits / temperature, 1)).sum(1)
    return temperature**2 * torch.where(target != IGNORED, entropy, 0).sum((1, 2, 3))


def build_teacher(described: Mapping[str, Any]) -> "torch.nn.Module":
    """A network without gradients, with random weights.

    Parameters
    ----------
    described
        ``network`` and ``arguments``, as ``registry.build`` takes them.
    """
    from apps.imaging.models.networks import registry

    teacher = registry.build(described["network"], described["arguments"]).eval()
    return teacher.requires_grad_(False)
