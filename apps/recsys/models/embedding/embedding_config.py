"""Sizes and hyper-parameters of an ``embedding`` model, without torch: for the command line and the planner."""

from __future__ import annotations

from dataclasses import dataclass

from common.compression.layouts import Layout, layout

TARGETS = 4
"""Items of a user that are predicted together, each from all the others: the sum is computed once for them."""
LEARNED_TARGETS = 8
"""The same where users have learned vectors: scores with the negatives are computed once for them."""
ABSENT = -1
"""Padding of the windows of users with few items."""
POOL = 1 << 19
"""Interactions that are shuffled together."""
LOSSES = ("softmax", "ccl", "bpr")
USER_VECTORS = ("learned", "history")
"""User vectors while the items are trained: learned, or the sum of the items in the user's history."""
ROW_BYTES = 38
"""Bytes per row of weights and optimiser, for the tables that can be made to a size: what ``int4`` takes at 64
factors."""
RATES = {"learned": 0.02, "history": 0.2}
"""Default learning rates: of steps on directions, and of row-wise Adagrad."""


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """All that decides the trained vectors, besides the data and the seed.

    Attributes
    ----------
    items
        Rows of the items' table.
    factors
        Numbers per vector.
    users
        Users with learned vectors; 0: a user is the sum of its items.
    loss
        ``"softmax"`` (sampled, logQ-corrected), ``"ccl"`` (cosine contrastive) or ``"bpr"``.
    tables
        1: an item has one vector; 2: a second one is used where the item is part of a user.
    table
        Storage of the vectors while they train (``common.compression.layouts.KINDS``).
    row_bytes
        Bytes per row, for the tables that can be made to a size.
    batch
        Windows per step: up to ``targets`` pairs of user and item each.
    negatives
        Items sampled for a step; every pair is compared with all of them.
    window
        Most items of a user that are summed.
    popularity
        Negatives are drawn in proportion to an item's count to this power; 0: uniformly.
    prior
        Times the logarithm of an item's count, added to its score. For ``softmax`` with learned user vectors.
    learning_rate
        At the first step; it falls to zero along half a cosine.
    temperature
        Divides the cosines of ``softmax``.
    margin, negative_weight
        Parameters of ``ccl`` (``losses.contrastive``).
    """

    items: int
    factors: int
    users: int = 0
    loss: str = "softmax"
    tables: int = 1
    table: str = "full"
    row_bytes: int = ROW_BYTES
    batch: int = 512
    negatives: int = 512
    window: int = 50
    popularity: float = 0.0
    prior: float = 0.0
    learning_rate: float = 0.2
    temperature: float = 0.1
    margin: float = 0.4
    negative_weight: float = 150.0

    @property
    def cosine(self) -> bool:
        """True if scores are cosines, False if they are dot products."""
        return self.loss != "bpr"

    @property
    def user_vectors(self) -> str:
        """One of ``USER_VECTORS``."""
        return "learned" if self.users else "history"

    @property
    def targets(self) -> int:
        """Items of a user that are predicted together."""
        return LEARNED_TARGETS if self.users else TARGETS

    @property
    def width(self) -> int:
        """Items of a user in a batch: its targets and, where the user is a sum, the other items of the window."""
        return LEARNED_TARGETS if self.users else self.window

    @property
    def counts_items(self) -> bool:
        """True if items are drawn, or scored, by how often they occur."""
        return self.popularity > 0 or self.prior > 0

    @property
    def item_table(self) -> Layout:
        """Layout of a table of items."""
        return layout(self.table, rows=self.items, width=self.factors, row_bytes=self.row_bytes)

    @property
    def user_table(self) -> Layout | None:
        """Layout of the table of users; ``None`` if users are sums."""
        if not self.users:
            return None
        return layout(self.table, rows=self.users, width=self.factors, row_bytes=self.row_bytes)

    @property
    def layouts(self) -> list[Layout]:
        """Layouts of all tables that are trained."""
        users = [self.user_table] if self.user_table is not None else []
        return [self.item_table] * self.tables + users

    @property
    def touched_rows(self) -> int:
        """The most items that one batch can touch."""
        return min(self.items, self.batch * self.width + self.negatives)

    @property
    def touched_users(self) -> int:
        """The most users that one batch can touch."""
        return min(self.users, self.batch)


PRIOR = 0.3
"""Default of ``prior`` with learned user vectors: a cosine cannot express how popular an item is. Chosen on hidden
items of Gowalla."""

HYPER = {
    "user_vectors": "history",
    "tables": 1,
    "row_bytes": ROW_BYTES,
    "batch": 512,
    "negatives": 512,
    "window": 50,
    "popularity": 0.0,
    "prior": PRIOR,
    "learning_rate": 0.0,
    "temperature": 0.1,
    "margin": 0.4,
    "negative_weight": 150.0,
    "validation": 1,
    "patience": 5,
}
"""``--set`` of the embedding model, with defaults: the fields of ``EmbeddingConfig``, and

``user_vectors``: one of ``USER_VECTORS``; ``prior``: set to 0 where it does not apply; ``learning_rate=0``: the value
in ``RATES``; ``validation=0``: no items are hidden to stop by; ``patience``: epochs without a better validation after
which training ends.
"""
