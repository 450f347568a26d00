"""Losses that compare a pair's score with those of sampled items.

``own`` has a score for each pair, ``others`` one more axis for the negatives, and may be the same for all pairs of a
row. A negative of score ``-inf`` adds nothing to any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from common.training.step import Batch

Each = Callable[["Tensor", "Tensor"], "Tensor"]
"""From ``own`` (rows, pairs) and ``others`` (rows, pairs or 1, negatives) to a loss for each pair."""


@dataclass(frozen=True, slots=True)
class MeanOverTargets:
    """A ``common.training.step.Loss``: the mean of ``each`` over the targets of a batch, whose rows say how many."""

    each: Each

    def counts(self, batch: Batch) -> tuple[Tensor]:
        """How many targets."""
        return (batch[0][:, 0].sum().float(),)

    def sums(self, scores: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor]:
        """Their losses' sum."""
        import torch

        own, others = scores
        there = torch.arange(own.shape[1]) < batch[0][:, :1]
        return (self.each(own, others).mul(there).sum(),)


def softmax(own: Tensor, others: Tensor) -> Tensor:
    """Sampled softmax: cross-entropy of the own item among all; the scores hold the logQ correction already."""
    return own.logaddexp(others.logsumexp(-1)) - own


def ranking(own: Tensor, others: Tensor) -> Tensor:
    """BPR (Rendle et al. 2009): how surely the own item is above each negative, averaged over the negatives."""
    import torch.nn.functional as F

    return F.softplus(others - own[..., None]).mean(-1)


def contrastive(margin: float, weight: float) -> Each:
    """Cosine contrastive loss (SimpleX, Mao et al. 2021, equation 1): the own cosine towards 1, others below a margin.

    Parameters
    ----------
    margin
        Negatives with a smaller cosine cost nothing.
    weight
        Of the negatives' mean against the own item's term.
    """

    def each(own: Tensor, others: Tensor) -> Tensor:
        return 1 - own + weight * (others - margin).relu().mean(-1)

    return each
