"""The ``embedding`` model: a user is the sum of the items it had, and scores every item by a product with it.

Two tables of vectors: ``taste``, what having an item says about a user, and ``items``, what is shown. No user has a
vector of its own, so that nothing grows with the users and a new one is served like any other (FISM, Kabbur et al.
2013; the aggregation of SimpleX, Mao et al. 2021, without the user's own part). An item never helps to predict
itself: in training it is left out of its own user's sum.

What is trained here is also what is priced (``make_step``); ``apps.recsys.batches`` feeds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from apps.recsys import losses
from common.compression.embeddings import EmbeddingTable, TableOptimizer
from common.training.step import TrainingStep

if TYPE_CHECKING:
    from torch import Tensor

FIRST_NORM = 0.8
"""Expected length of a vector before training."""
ABSENT = -1
"""Fills up histories that are shorter than the longest."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the result beside the data.

    Attributes
    ----------
    loss
        ``"softmax"``, ``"ccl"`` or ``"bpr"``.
    table
        How both tables are stored while they train (``common.compression.prices.KINDS``).
    batch
        Pairs of user and item in a step.
    negatives
        Items sampled for a step; every pair is compared with all of them.
    history
        Most items of a user that are summed.
    popularity
        Negatives are drawn in proportion to an item's count to this power; 0: all alike.
    temperature
        Divides the cosines of ``softmax``.
    margin, negative_weight
        Of ``ccl`` (``losses.contrastive``).
    """

    items: int
    factors: int
    loss: str = "softmax"
    table: str = "full"
    batch: int = 2048
    negatives: int = 1024
    history: int = 50
    popularity: float = 0.0
    learning_rate: float = 0.2
    temperature: float = 0.1
    margin: float = 0.4
    negative_weight: float = 150.0


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step trains on; int64 tensors.

    Attributes
    ----------
    items, taste
        Rows of the two tables that are touched, each once.
    pairs
        Shape (batch, 1 + history). First the pair's item, as its place in ``items``; then the user's other items, as
        places in ``taste``, filled up with ``ABSENT``.
    negatives
        Shape (negatives,): places in ``items``.
    correction
        Shape (negatives,): the logarithm of how often each was to be expected in the sample, for ``softmax``.
    """

    items: Tensor
    taste: Tensor
    pairs: Tensor
    negatives: Tensor
    correction: Tensor


class ItemSums(torch.nn.Module):
    """Scores of pairs by the product of the user's sum with an item's vector, or by its cosine.

    Parameters
    ----------
    recipe
        Sizes and form of the tables, and the loss, which decides on product or cosine.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.cosine = recipe.loss != "bpr"
        self.scale = 1 / recipe.temperature if recipe.loss == "softmax" else 1.0
        deviation = FIRST_NORM / recipe.factors**0.5
        self.items = EmbeddingTable(recipe.table, recipe.items, recipe.factors, deviation=deviation)
        self.taste = EmbeddingTable(recipe.table, recipe.items, recipe.factors, deviation=deviation)
        self._negatives: Tensor | None = None
        self._correction: Tensor | None = None

    def load(self, batch: Batch) -> None:
        """Make the rows of a batch ready."""
        self.items.load(batch.items)
        self.taste.load(batch.taste)
        self._negatives = batch.negatives
        self._correction = batch.correction if self.scale != 1 else None

    def forward(self, pairs: Tensor) -> Tensor:
        """Scores, shape (pairs, 1 + negatives): the pair's own first; ``-inf`` where a negative is that very item."""
        assert self._negatives is not None
        user = self._sum(pairs[:, 1:])
        item, others = self.items(pairs[:, 0]), self.items(self._negatives)
        if self.cosine:
            user, item, others = (F.normalize(vectors, dim=1) for vectors in (user, item, others))
        user = user * self.scale
        scores = user @ others.T
        if self._correction is not None:
            scores = scores - self._correction
        own = (user * item).sum(1, keepdim=True)
        itself = pairs[:, :1] == self._negatives
        return torch.cat([own.to(scores.dtype), scores.masked_fill(itself, -torch.inf)], 1)

    def _sum(self, history: Tensor) -> Tensor:
        """Sums of the loaded ``taste`` vectors over the root of their number, shape (pairs, factors)."""
        present = (history != ABSENT).float()
        present /= present.sum(1, keepdim=True).clamp(min=1).sqrt()
        assert self.taste.loaded is not None
        return F.embedding_bag(history.clamp(min=0), self.taste.loaded, per_sample_weights=present, mode="sum")


class Step:
    """One optimiser step on a batch: ``TrainingStep`` between reading rows and writing them."""

    def __init__(self, network: ItemSums, training: TrainingStep) -> None:
        self.network, self.training = network, training

    def __call__(self, batch: Batch) -> Tensor:
        """Do it; returns the mean loss over the pairs."""
        self.network.load(batch)
        return self.training([batch.pairs])


def make_step(recipe: Recipe, *, micro_batch: int, amp: str = "off") -> tuple[ItemSums, TableOptimizer, Step]:
    """Network, optimiser and step; what trains and what is priced are the same.

    Parameters
    ----------
    micro_batch
        Pairs that go forward and backward together.
    amp
        ``"bf16"``: products with the negatives in bfloat16; ``"off"``.
    """
    each = {
        "softmax": losses.softmax,
        "ccl": losses.contrastive(recipe.margin, recipe.negative_weight),
        "bpr": losses.ranking,
    }[recipe.loss]
    network = ItemSums(recipe)
    optimizer = TableOptimizer([network.items, network.taste], recipe.learning_rate)
    training = TrainingStep(network, optimizer, losses.MeanOverPairs(each), micro_batch, amp)
    return network, optimizer, Step(network, training)


def largest_batch(recipe: Recipe) -> Batch:
    """A batch that touches as many rows as one can: what prices are made for."""
    items = min(recipe.items, recipe.batch + recipe.negatives)
    taste = min(recipe.items, recipe.batch * recipe.history)
    places = torch.arange(recipe.batch)
    history = torch.arange(recipe.batch * recipe.history).view(recipe.batch, -1) % taste
    return Batch(
        items=torch.arange(items),
        taste=torch.arange(taste),
        pairs=torch.cat([places[:, None] % items, history], 1),
        negatives=torch.arange(recipe.negatives) % items,
        correction=torch.zeros(recipe.negatives),
    )
