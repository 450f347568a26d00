"""Losses that compare the score of each positive item with the scores of sampled negatives.

``positive_scores`` has shape (rows, pairs): a score per pair. ``negative_scores`` has shape (rows, pairs or 1,
negatives); a second axis of 1 means that all pairs of a row have the same negatives' scores. A negative with score
``-inf`` adds nothing to any of the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from common.training.gradcache import Batch

LossPerPair = Callable[["Tensor", "Tensor"], "Tensor"]
"""From positive scores (rows, pairs) and negative scores (rows, pairs or 1, negatives) to losses (rows, pairs)."""


@dataclass(frozen=True, slots=True)
class MeanOverTargets:
    """Mean of a loss over the targets of a batch (a ``common.training.step.Loss``).

    Attributes
    ----------
    loss
        A loss per pair.
    """

    loss: LossPerPair

    def counts(self, batch: Batch) -> tuple[Tensor]:
        """Number of targets; the first column of the windows holds each row's."""
        return (batch[0][:, 0].sum().float(),)

    def sums(self, scores: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor]:
        """Sum of the targets' losses."""
        import torch

        positive_scores, negative_scores = scores
        present = torch.arange(positive_scores.shape[1]) < batch[0][:, :1]
        return (self.loss(positive_scores, negative_scores).mul(present).sum(),)


def softmax(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
    """Sampled softmax: cross-entropy of the positive against the negatives.

    The logQ correction must be part of ``negative_scores``.
    """
    return positive_scores.logaddexp(negative_scores.logsumexp(-1)) - positive_scores


def bpr(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
    """BPR (Rendle et al. 2009): log(1 + exp(negative - positive)), averaged over the negatives."""
    import torch.nn.functional as F

    return F.softplus(negative_scores - positive_scores[..., None]).mean(-1)


def contrastive(margin: float, weight: float) -> LossPerPair:
    """Cosine contrastive loss (SimpleX, Mao et al. 2021, equation 1).

    It pulls the positive's cosine towards 1 and pushes negatives below a margin.

    Parameters
    ----------
    margin
        Negatives with a smaller cosine cost nothing.
    weight
        Weight of the negatives' mean against the positive's term.
    """

    def loss(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        return 1 - positive_scores + weight * (negative_scores - margin).relu().mean(-1)

    return loss
