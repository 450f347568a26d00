"""Losses that compare a pair's score with those of sampled items; ``scores[:, 0]`` is the pair's own.

A negative that is the pair's own item has the score ``-inf`` and adds nothing to any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from common.training.step import Batch


@dataclass(frozen=True, slots=True)
class MeanOverTargets:
    """A ``common.training.step.Loss``: the mean of ``each`` over the targets of a batch.

    Attributes
    ----------
    each
        From scores (pairs, 1 + negatives) to a loss for each pair.
    most
        Rows of scores for each row of the batch, whose first number says how many of them count.
    """

    each: Callable[[Tensor], Tensor]
    most: int

    def counts(self, batch: Batch) -> tuple[Tensor]:
        """How many targets."""
        return (batch[0][:, 0].sum().float(),)

    def sums(self, scores: Tensor, batch: Batch) -> tuple[Tensor]:
        """Their losses' sum."""
        import torch

        there = torch.arange(self.most) < batch[0][:, :1]
        return (self.each(scores).mul(there.flatten()).sum(),)


def softmax(scores: Tensor) -> Tensor:
    """Sampled softmax: cross-entropy of the own item among all; the scores hold the logQ correction already."""
    return scores.logsumexp(1) - scores[:, 0]


def ranking(scores: Tensor) -> Tensor:
    """BPR (Rendle et al. 2009): how surely the own item is above each negative, averaged over the negatives."""
    import torch.nn.functional as F

    return F.softplus(scores[:, 1:] - scores[:, :1]).mean(1)


def contrastive(margin: float, weight: float) -> Callable[[Tensor], Tensor]:
    """Cosine contrastive loss (SimpleX, Mao et al. 2021, equation 1): the own cosine towards 1, others below a margin.

    Parameters
    ----------
    margin
        Negatives with a smaller cosine cost nothing.
    weight
        Of the negatives' mean against the own item's term.
    """

    def each(scores: Tensor) -> Tensor:
        return 1 - scores[:, 0] + weight * (scores[:, 1:] - margin).relu().mean(1)

    return each
