"""The ``embedding`` model: a user is the sum of the items it had, and scores every item by a product with it.

No user has a vector of its own, so that nothing grows with the users and a new one is served like any other (FISM,
Kabbur et al. 2013; the aggregation of SimpleX, Mao et al. 2021, without the user's own part). An item never helps to
predict itself: in training it is taken out of its own user's sum. What having an item says about a user may be learnt
in a second table, ``taste``, or be the same vector as the one that is shown.

What is trained here is also what is priced (``make_step``); ``apps.recsys.batches`` feeds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from apps.recsys import losses
from apps.recsys.recipe import ABSENT, TARGETS, Recipe
from common.compression.embeddings import EmbeddingTable, TableOptimizer
from common.training.step import TrainingStep

if TYPE_CHECKING:
    from torch import Tensor

FIRST_NORM = 0.8
"""Expected length of a vector before training."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step trains on.

    Attributes
    ----------
    rows
        Rows of the tables that are touched, each once; int64.
    windows
        Shape (batch, 1 + window), int64. First how many targets there are; then places in ``rows`` of one user's
        items, the targets first, filled up with ``ABSENT``.
    negatives
        Shape (negatives,), int64: places in ``rows``.
    correction
        Shape (negatives,): the logarithm of how often each was to be expected in the sample, for ``softmax``.
    """

    rows: Tensor
    windows: Tensor
    negatives: Tensor
    correction: Tensor


class ItemSums(torch.nn.Module):
    """Scores of users' targets and of negatives: by the product of the user's sum with an item's vector, or its cosine.

    Parameters
    ----------
    recipe
        Sizes and form of the tables, and the loss, which decides on product or cosine.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.cosine = recipe.cosine
        self.scale = 1 / recipe.temperature if recipe.loss == "softmax" else 1.0
        deviation = FIRST_NORM / recipe.factors**0.5
        shape = (recipe.table, recipe.items, recipe.factors)
        self.items = EmbeddingTable(*shape, deviation=deviation)
        self.taste = EmbeddingTable(*shape, deviation=deviation) if recipe.tables == 2 else None
        self._corrected = recipe.loss == "softmax"
        self._batch: Batch | None = None

    @property
    def tables(self) -> list[EmbeddingTable]:
        """One table or two."""
        return [self.items] if self.taste is None else [self.items, self.taste]

    def load(self, batch: Batch) -> None:
        """Make the rows of a batch ready."""
        for table in self.tables:
            table.load(batch.rows)
        self._batch = batch

    def forward(self, windows: Tensor) -> Tensor:
        """Scores, shape (windows * TARGETS, 1 + negatives): the target's own first; ``-inf`` for a negative that is it.

        Rows of targets that are not there mean nothing (``losses.MeanOverTargets`` leaves them out).
        """
        assert self._batch is not None
        known = windows[:, 1:]
        targets = known[:, :TARGETS].clamp(min=0)
        item, others = self.items(targets), self.items(self._batch.negatives)
        user = self._others_of(known, targets)
        if self.cosine:
            user, item, others = (F.normalize(vectors, dim=-1) for vectors in (user, item, others))
        user = (user * self.scale).flatten(0, 1)
        scores = user @ others.T
        if self._corrected:
            scores = scores - self._batch.correction
        itself = targets.flatten()[:, None] == self._batch.negatives
        own = (user * item.flatten(0, 1)).sum(1, keepdim=True)
        return torch.cat([own.to(scores.dtype), scores.masked_fill(itself, -torch.inf)], 1)

    def _others_of(self, known: Tensor, targets: Tensor) -> Tensor:
        """For each target the sum of its user's other items over the root of their number."""
        taste = self.tables[-1]
        present = (known != ABSENT).float()
        total = F.embedding_bag(known.clamp(min=0), taste.loaded, per_sample_weights=present, mode="sum")
        many = present.sum(1).sub(1).clamp(min=1).sqrt()
        return (total[:, None] - taste(targets)) / many[:, None, None]


class Step:
    """One optimiser step on a batch: ``TrainingStep`` between reading rows and writing them."""

    def __init__(self, network: ItemSums, training: TrainingStep) -> None:
        self.network, self.training = network, training

    def __call__(self, batch: Batch) -> Tensor:
        """Do it; returns the mean loss over the targets."""
        self.network.load(batch)
        return self.training([batch.windows])


def make_step(recipe: Recipe, *, micro_batch: int, amp: str = "off") -> tuple[ItemSums, TableOptimizer, Step]:
    """Network, optimiser and step; what trains and what is priced are the same.

    Parameters
    ----------
    micro_batch
        Windows that go forward and backward together.
    amp
        ``"bf16"``: products with the negatives in bfloat16; ``"off"``.
    """
    each = {
        "softmax": losses.softmax,
        "ccl": losses.contrastive(recipe.margin, recipe.negative_weight),
        "bpr": losses.ranking,
    }[recipe.loss]
    network = ItemSums(recipe)
    optimizer = TableOptimizer(network.tables, recipe.learning_rate)
    training = TrainingStep(network, optimizer, losses.MeanOverTargets(each, TARGETS), micro_batch, amp)
    return network, optimizer, Step(network, training)


def largest_batch(recipe: Recipe) -> Batch:
    """A batch that touches as many rows as one can: what prices are made for."""
    rows = recipe.touched_rows
    windows = torch.arange(recipe.batch * recipe.window).view(recipe.batch, -1) % rows
    return Batch(
        rows=torch.arange(rows),
        windows=torch.cat([torch.full((recipe.batch, 1), TARGETS), windows], 1),
        negatives=torch.arange(recipe.negatives) % rows,
        correction=torch.zeros(recipe.negatives),
    )
