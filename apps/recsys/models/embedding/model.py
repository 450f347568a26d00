"""The ``embedding`` model: vectors of items and users, trained by comparing a user's items with sampled ones.

There are two kinds of user vectors (``EmbeddingConfig.user_vectors``):

- **learned**: matrix factorisation. Each user has a vector while the items are trained; rows of both tables are
  directions. With a cosine loss this is MF-CCL (Mao et al. 2021).
- **history**: a user is the sum of the items in its history (FISM, Kabbur et al. 2013; SimpleX without the user's own
  part). A target is left out of the sum that predicts it. A second table of items may be learned for this sum.

In both cases only items are stored in the model. Users are computed from their histories
(``apps.recsys.models.embedding.user_encoders``), so a model does not grow with users, and new users are served like
others.

``make_step`` builds what is trained and what the planner prices; ``apps.recsys.training.batches`` makes the batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from apps.recsys.models.embedding import losses
from apps.recsys.models.embedding.embedding_config import ABSENT, EmbeddingConfig
from apps.recsys.models.embedding.table_codes import NO_FIXED_INPUTS, FixedInputs
from common.compression.embeddings import EmbeddingTable, TableOptimizer
from common.compression.stored import Start
from common.training.distributed.group import ALONE, Group
from common.training.step import TrainingStep

if TYPE_CHECKING:
    from torch import Tensor

FIRST_NORM = 0.8
"""Expected length of a vector before training."""
SQUARES_DECAY = 0.99
"""For rows that are directions: share of the moving average of a row's squared gradients that is kept at each step."""


@dataclass(frozen=True, slots=True)
class EmbeddingBatch:
    """Rows and positions that one step trains on.

    Attributes
    ----------
    rows, users
        Rows of the items' and of the users' tables that are touched, each once; int64.
    windows
        Shape (batch, 2 + width), int64. The columns: number of targets; position of the user in ``users``; positions
        in ``rows`` of the user's items, targets first, padded with ``ABSENT``.
    negatives
        Shape (negatives,), int64: positions in ``rows``.
    correction
        Shape (negatives,): logarithm of the expected count of each in the sample, for ``softmax``.
    prior
        Shape (rows,): added to the score of each item for every user.
    """

    rows: Tensor
    users: Tensor
    windows: Tensor
    negatives: Tensor
    correction: Tensor
    prior: Tensor


class EmbeddingNetwork(torch.nn.Module):
    """Scores of targets and negatives: dot products, or cosines, of user and item vectors.

    Parameters
    ----------
    config
        Sizes and storage of the tables, and the loss, which decides between dot product and cosine.
    fixed
        Fixed inputs of the tables' rows.
    sharers
        The ranks that have some rows of each table; ``None``: this process has all.
    """

    def __init__(self, config: EmbeddingConfig, fixed: FixedInputs, sharers: Group | None = None) -> None:
        super().__init__()
        self.cosine, self.targets = config.cosine, config.targets
        self.scale = 1 / config.temperature if config.loss == "softmax" else 1.0
        start = Start(FIRST_NORM / config.factors**0.5)
        if config.users:
            start = replace(start, ema_decay=SQUARES_DECAY, unit_norm=config.cosine)
        items, users = config.item_table, config.user_table
        self.items = EmbeddingTable(items, start, fixed.items, sharers)
        self.users = None if users is None else EmbeddingTable(users, start, fixed.users, sharers)
        self.user_side = EmbeddingTable(items, start, fixed.items, sharers) if config.tables == 2 else None
        self._corrected, self._prior = config.loss == "softmax", config.prior > 0
        self._batch: EmbeddingBatch | None = None

    @property
    def tables(self) -> list[EmbeddingTable]:
        """All tables that are trained."""
        return [table for table in (self.items, self.user_side, self.users) if table is not None]

    def loaded(self) -> list[Tensor]:
        """Rows that are loaded, of all tables."""
        return [table.loaded for table in self.tables if table.loaded is not None]

    def load(self, batch: EmbeddingBatch) -> None:
        """Read the rows that a batch touches; call it before ``forward``."""
        for table in self.tables:
            table.load(batch.users if table is self.users else batch.rows)
        self._batch = batch

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Score the targets and the negatives of some windows.

        A user that is a sum has another vector for each target, and a negative that equals the target gets the score
        ``-inf``. A learned user has one set of negatives' scores for all targets; the few negatives among its targets
        keep their scores. Scores of absent targets are meaningless: ``losses.MeanOverTargets`` masks them.

        Returns
        -------
        positive_scores, negative_scores
            Shapes (windows, targets) and (windows, targets or 1, negatives).
        """
        assert self._batch is not None
        window_items = windows[:, 2:]
        targets = window_items[:, : self.targets].clamp(min=0)
        items, negatives = self.items(targets), self.items(self._batch.negatives)
        user = self._sum_without_target(window_items, targets) if self.users is None else self.users(windows[:, 1:2])
        if self.cosine:
            user, items, negatives = (F.normalize(vectors, dim=-1) for vectors in (user, items, negatives))
        user = user * self.scale
        positive_scores, negative_scores = (user * items).sum(-1), user @ negatives.T
        if self._prior:
            prior = self._batch.prior
            positive_scores = positive_scores + prior[targets]
            negative_scores = negative_scores + prior[self._batch.negatives]
        if self._corrected:
            negative_scores = negative_scores - self._batch.correction
        if self.users is None:
            is_target = targets[..., None] == self._batch.negatives
            negative_scores = negative_scores.masked_fill(is_target, -torch.inf)
        return positive_scores, negative_scores

    def _sum_without_target(self, window_items: Tensor, targets: Tensor) -> Tensor:
        """For each target the sum of the window's other items over the root of their number: (windows, targets, n)."""
        table = self.items if self.user_side is None else self.user_side
        assert table.loaded is not None
        present = (window_items != ABSENT).to(table.loaded.dtype)
        total = F.embedding_bag(window_items.clamp(min=0), table.loaded, per_sample_weights=present, mode="sum")
        divisor = present.sum(1).sub(1).clamp(min=1).sqrt()
        target_vectors: Tensor = table(targets)
        return (total[:, None] - target_vectors) / divisor[:, None, None]


class EmbeddingStep:
    """One optimiser step on a batch: a ``TrainingStep`` between reading rows and writing them.

    Every rank loads all rows of a batch, from tables of its own or from all ranks, and computes some of its windows.
    """

    def __init__(self, network: EmbeddingNetwork, training: TrainingStep) -> None:
        self.network, self.training = network, training

    def __call__(self, batch: EmbeddingBatch) -> Tensor:
        """Train on the batch; returns the mean loss over its targets, a scalar."""
        self.network.load(batch)
        share = self.training.group.world.share(len(batch.windows))
        return self.training([batch.windows[share.start : share.stop]])


def make_step(
    config: EmbeddingConfig,
    *,
    micro_batch: int,
    amp: str = "off",
    fixed: FixedInputs = NO_FIXED_INPUTS,
    group: Group = ALONE,
    shared: bool = False,
) -> tuple[EmbeddingNetwork, TableOptimizer, EmbeddingStep]:
    """Build network, optimiser and step, for training and for pricing.

    Parameters
    ----------
    config
        Sizes and hyper-parameters.
    micro_batch
        Windows that go forward and backward together.
    amp
        ``"bf16"``: dot products with the negatives in bfloat16; ``"off"``: in float32.
    fixed
        Fixed inputs of the tables' rows.
    group
        The ranks that train it together.
    shared
        True if each of them has some rows of the tables, and not all. For tables of ``row_formats.FORMATS``.
    """
    loss = {
        "softmax": losses.softmax,
        "ccl": losses.contrastive(config.margin, config.negative_weight),
        "bpr": losses.bpr,
    }[config.loss]
    network = EmbeddingNetwork(config, fixed, group if shared and group.several else None)
    optimizer = TableOptimizer(network.tables, config.learning_rate)
    training = TrainingStep(
        network, optimizer, losses.MeanOverTargets(loss), micro_batch, amp, group=group, leaves=network.loaded
    )
    return network, optimizer, EmbeddingStep(network, training)


def largest_batch(config: EmbeddingConfig) -> EmbeddingBatch:
    """A batch that touches as many rows as any batch can, for pricing."""
    rows, users = config.touched_rows, config.touched_users
    positions = torch.arange(config.batch * config.width).view(config.batch, -1) % rows
    user = torch.arange(config.batch)[:, None] % max(1, users)
    return EmbeddingBatch(
        rows=torch.arange(rows),
        users=torch.arange(users),
        windows=torch.cat([torch.full((config.batch, 1), config.targets), user, positions], 1),
        negatives=torch.arange(config.negatives) % rows,
        correction=torch.zeros(config.negatives),
        prior=torch.zeros(rows),
    )
