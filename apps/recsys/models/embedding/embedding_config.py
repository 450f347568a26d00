"""What an ``embedding`` model is and how it is trained, without torch: for the command line and the planner."""

from __future__ import annotations

from dataclasses import dataclass

from common.compression.layouts import Layout, layout

TARGETS = 4
"""Items of a user that are predicted together, each from all the others: the sum is made once for them."""
OWN_TARGETS = 8
"""The same where users have vectors of their own: scores with the negatives are made once for them."""
ABSENT = -1
"""Fills up the windows of users with few items."""
POOL = 1 << 19
"""Interactions that are shuffled together."""
LOSSES = ("softmax", "ccl", "bpr")
USERS = ("own", "sum")
"""What a user is while the items are trained: a vector of its own, or the sum of its items."""
ROW_BYTES = 38
"""Of a row of weights and optimiser: what ``int4`` takes at 64 factors."""
RATES = {"own": 0.02, "sum": 0.2}
"""Learning rates: of steps on directions, and of row-wise Adagrad."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the result beside the data.

    Attributes
    ----------
    users
        Users that have vectors of their own while the items are trained; 0: they are sums of their items.
    loss
        ``"softmax"`` (sampled, logQ-corrected), ``"ccl"`` (cosine contrastive) or ``"bpr"``.
    tables
        1: an item has one vector; 2: another one where it is part of a user.
    table
        What they are made of while they train (``common.compression.layouts.KINDS``).
    row_bytes
        What a row may take then, for the tables that can be made to it.
    batch
        Windows in a step: up to ``targets`` pairs of user and item each.
    negatives
        Items sampled for a step; every pair is compared with all of them.
    window
        Most items of a user that are summed.
    popularity
        Negatives are drawn in proportion to an item's count to this power; 0: all alike.
    prior
        Of ``softmax`` with users of their own: an item's score has the logarithm of its count, times this, beforehand.
    temperature
        Divides the cosines of ``softmax``.
    margin, negative_weight
        Of ``ccl`` (``losses.contrastive``).
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
        """Whether scores are cosines; else plain products."""
        return self.loss != "bpr"

    @property
    def user(self) -> str:
        """One of ``USERS``."""
        return "own" if self.users else "sum"

    @property
    def targets(self) -> int:
        """Items of a user that are predicted together."""
        return OWN_TARGETS if self.users else TARGETS

    @property
    def width(self) -> int:
        """Items of a user in a batch: its targets, and where it is their sum all others too."""
        return OWN_TARGETS if self.users else self.window

    @property
    def item_table(self) -> Layout:
        """What a table of items is made of."""
        return layout(self.table, rows=self.items, width=self.factors, row_bytes=self.row_bytes)

    @property
    def user_table(self) -> Layout | None:
        """What the table of users is made of."""
        if not self.users:
            return None
        return layout(self.table, rows=self.users, width=self.factors, row_bytes=self.row_bytes)

    @property
    def layouts(self) -> list[Layout]:
        """All tables that are trained."""
        users = [self.user_table] if self.user_table is not None else []
        return [self.item_table] * self.tables + users

    @property
    def touched_rows(self) -> int:
        """The most items that one batch can touch."""
        return min(self.items, self.batch * self.width + self.negatives)

    @property
    def touched_users(self) -> int:
        """The most users."""
        return min(self.users, self.batch)


PRIOR = 0.3
"""Cosines cannot say how popular an item is beside what it is like; chosen on hidden items of Gowalla."""

HYPER = {
    "user": "sum",
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
"""``--set`` of the embedding model, with defaults.

``user``: one of ``USERS``; ``row_bytes``: of tables that can be made to it; ``prior``: 0 where it has no meaning;
``learning_rate=0``: that of ``RATES``; ``validation=0``: no items are hidden to stop by; ``patience``: epochs without a
better validation after which training ends.
"""
