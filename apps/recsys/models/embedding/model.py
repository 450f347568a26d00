"""The ``embedding`` model: items and users as vectors, trained by comparing a user's items with sampled ones.

Two kinds of users, by ``Recipe.users``:

- **own**: matrix factorisation. Each user has a vector while the items are trained; rows of both tables are directions.
  With a cosine loss this is MF-CCL (Mao et al. 2021).
- **sum**: a user is the sum of the items it had (FISM, Kabbur et al. 2013; SimpleX without the user's own part). An
  item never helps to predict itself: it is taken out of its own user's sum. What having an item says about a user may
  be learnt in a second table, ``taste``.

Either way only items are kept in the end: users are computed from what they had
(``apps.recsys.models.embedding.user_encoders``), so that nothing grows with the users and a new one is served like any
other.

What is trained here is also what is priced (``make_step``); ``apps.recsys.training.batches`` feeds it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from apps.recsys.models.embedding import losses
from apps.recsys.models.embedding.embedding_config import ABSENT, Recipe
from apps.recsys.models.embedding.table_codes import NOTHING, Known
from common.compression.embeddings import EmbeddingTable, TableOptimizer
from common.compression.stored import Start
from common.training.step import TrainingStep

if TYPE_CHECKING:
    from torch import Tensor

FIRST_NORM = 0.8
"""Expected length of a vector before training."""
MEMORY = 0.99
"""Of the optimiser where rows are directions: share of a row's mean squared gradient that stays at each step."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step trains on.

    Attributes
    ----------
    rows, users
        Rows of the items' and of the users' tables that are touched, each once; int64.
    windows
        Shape (batch, 2 + width), int64. First how many targets there are, then the user's place in ``users``; then
        places in ``rows`` of its items, the targets first, filled up with ``ABSENT``.
    negatives
        Shape (negatives,), int64: places in ``rows``.
    correction
        Shape (negatives,): the logarithm of how often each was to be expected in the sample, for ``softmax``.
    prior
        Shape (rows,): what the score of each item has beforehand, whoever the user.
    """

    rows: Tensor
    users: Tensor
    windows: Tensor
    negatives: Tensor
    correction: Tensor
    prior: Tensor


class Network(torch.nn.Module):
    """Scores of users' targets and of negatives: by the product of the user's vector with an item's, or its cosine.

    Parameters
    ----------
    recipe
        Sizes and form of the tables, and the loss, which decides on product or cosine.
    known
        What the tables are told beforehand.
    """

    def __init__(self, recipe: Recipe, known: Known) -> None:
        super().__init__()
        self.cosine, self.targets = recipe.cosine, recipe.targets
        self.scale = 1 / recipe.temperature if recipe.loss == "softmax" else 1.0
        start = Start(FIRST_NORM / recipe.factors**0.5)
        if recipe.users:
            start = replace(start, memory=MEMORY, unit=recipe.cosine)
        items, users = recipe.item_table, recipe.user_table
        self.items = EmbeddingTable(items, start, known.items)
        self.users = None if users is None else EmbeddingTable(users, start, known.users)
        self.taste = EmbeddingTable(items, start, known.items) if recipe.tables == 2 else None
        self._corrected, self._prior = recipe.loss == "softmax", recipe.prior > 0
        self._batch: Batch | None = None

    @property
    def tables(self) -> list[EmbeddingTable]:
        """All that is trained."""
        return [table for table in (self.items, self.taste, self.users) if table is not None]

    def load(self, batch: Batch) -> None:
        """Make the rows of a batch ready."""
        for table in self.tables:
            table.load(batch.users if table is self.users else batch.rows)
        self._batch = batch

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the targets, shape (windows, targets), and of the negatives, (windows, targets or 1, negatives).

        Rows of targets that are not there mean nothing (``losses.MeanOverTargets`` leaves them out). A user's sum is
        another one for each target, and a negative that is the target has the score ``-inf``; a user of its own has
        one set of scores for all its targets, in which the few negatives that are among them stay.
        """
        assert self._batch is not None
        known = windows[:, 2:]
        targets = known[:, : self.targets].clamp(min=0)
        item, others = self.items(targets), self.items(self._batch.negatives)
        user = self._others_of(known, targets) if self.users is None else self.users(windows[:, 1:2])
        if self.cosine:
            user, item, others = (F.normalize(vectors, dim=-1) for vectors in (user, item, others))
        user = user * self.scale
        own, scores = (user * item).sum(-1), user @ others.T
        if self._prior:
            prior = self._batch.prior
            own, scores = own + prior[targets], scores + prior[self._batch.negatives]
        if self._corrected:
            scores = scores - self._batch.correction
        if self.users is None:
            scores = scores.masked_fill(targets[..., None] == self._batch.negatives, -torch.inf)
        return own, scores

    def _others_of(self, known: Tensor, targets: Tensor) -> Tensor:
        """For each target the sum of its user's other items over the root of their number."""
        taste = self.items if self.taste is None else self.taste
        present = (known != ABSENT).float()
        total = F.embedding_bag(known.clamp(min=0), taste.loaded, per_sample_weights=present, mode="sum")
        many = present.sum(1).sub(1).clamp(min=1).sqrt()
        return (total[:, None] - taste(targets)) / many[:, None, None]


class Step:
    """One optimiser step on a batch: ``TrainingStep`` between reading rows and writing them."""

    def __init__(self, network: Network, training: TrainingStep) -> None:
        self.network, self.training = network, training

    def __call__(self, batch: Batch) -> Tensor:
        """Do it; returns the mean loss over the targets."""
        self.network.load(batch)
        return self.training([batch.windows])


def make_step(
    recipe: Recipe, *, micro_batch: int, amp: str = "off", known: Known = NOTHING
) -> tuple[Network, TableOptimizer, Step]:
    """Network, optimiser and step; what trains and what is priced are the same.

    Parameters
    ----------
    micro_batch
        Windows that go forward and backward together.
    amp
        ``"bf16"``: products with the negatives in bfloat16; ``"off"``.
    known
        What the tables are told beforehand.
    """
    each = {
        "softmax": losses.softmax,
        "ccl": losses.contrastive(recipe.margin, recipe.negative_weight),
        "bpr": losses.ranking,
    }[recipe.loss]
    network = Network(recipe, known)
    optimizer = TableOptimizer(network.tables, recipe.learning_rate)
    training = TrainingStep(network, optimizer, losses.MeanOverTargets(each), micro_batch, amp)
    return network, optimizer, Step(network, training)


def largest_batch(recipe: Recipe) -> Batch:
    """A batch that touches as many rows as one can: what prices are made for."""
    rows, users = recipe.touched_rows, recipe.touched_users
    places = torch.arange(recipe.batch * recipe.width).view(recipe.batch, -1) % rows
    user = torch.arange(recipe.batch)[:, None] % max(1, users)
    return Batch(
        rows=torch.arange(rows),
        users=torch.arange(users),
        windows=torch.cat([torch.full((recipe.batch, 1), recipe.targets), user, places], 1),
        negatives=torch.arange(recipe.negatives) % rows,
        correction=torch.zeros(recipe.negatives),
        prior=torch.zeros(rows),
    )
