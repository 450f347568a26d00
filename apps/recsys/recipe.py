"""What an ``embedding`` model is and how it is trained, without torch: for the command line and the planner."""

from __future__ import annotations

from dataclasses import dataclass

TARGETS = 4
"""Items of a user that are predicted together, each from all the others: the sum is made once for them."""
ABSENT = -1
"""Fills up the windows of users with few items."""
POOL = 1 << 19
"""Interactions that are shuffled together."""
LOSSES = ("softmax", "ccl", "bpr")


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the result beside the data.

    Attributes
    ----------
    loss
        ``"softmax"`` (sampled, logQ-corrected), ``"ccl"`` (cosine contrastive) or ``"bpr"``.
    tables
        1: an item has one vector; 2: another one where it is part of a user.
    table
        How they are stored while they train (``common.compression.prices.KINDS``).
    batch
        Windows in a step: up to ``TARGETS`` pairs of user and item each.
    negatives
        Items sampled for a step; every pair is compared with all of them.
    window
        Most items of a user that are looked at together.
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
    tables: int = 1
    table: str = "full"
    batch: int = 512
    negatives: int = 512
    window: int = 50
    popularity: float = 0.0
    learning_rate: float = 0.2
    temperature: float = 0.1
    margin: float = 0.4
    negative_weight: float = 150.0

    @property
    def cosine(self) -> bool:
        """Whether scores are cosines; else plain products."""
        return self.loss != "bpr"

    @property
    def touched_rows(self) -> int:
        """The most rows of a table that one batch can touch."""
        return min(self.items, self.batch * self.window + self.negatives)


HYPER = {
    "tables": 1,
    "batch": 512,
    "negatives": 512,
    "window": 50,
    "popularity": 0.0,
    "learning_rate": 0.2,
    "temperature": 0.1,
    "margin": 0.4,
    "negative_weight": 150.0,
    "validation": 1,
    "patience": 5,
}
"""``--set`` of the embedding model, with defaults; ``validation=0``: no items are hidden to stop by; ``patience``:
epochs without a better validation after which training ends."""
