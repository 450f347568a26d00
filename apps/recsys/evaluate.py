"""Full-ranking evaluation in blocks of users: nothing of size users x items ever exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METRICS = ("ndcg@10", "ndcg@100", "recall@20", "recall@50", "hr@10", "mrr@10", "coverage@10")
"""What is reported, as name@k."""


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Indices of the ``k`` largest scores, the best first; of equal scores the lower index first.

    ``-inf`` marks what must not be ranked; fewer than ``k`` come back when fewer are left.
    """
    import numpy as np

    k = min(k, len(scores))
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > least)
    equal = np.flatnonzero(scores == least)[: k - len(above)]
    found = np.concatenate([above, equal])
    found = found[scores[found] > -np.inf]
    found.sort()
    best: NDArray[np.intp] = found[np.argsort(-scores[found], kind="stable")]
    return best


class Tally:
    """Sums of the metrics over users.

    For a user with the set T of scored items and the ranking r (Liang et al. 2018 for ndcg and recall):
    recall@k = hits / min(k, len(T)); ndcg@k = sum over hits of 1/log2(rank + 1), divided by the same sum of an ideal
    ranking; hr@k = 1 if there is a hit; mrr@k = 1/rank of the first hit; coverage@k = share of all items that some
    user has among its first k.
    """

    def __init__(self, items: int, metrics: tuple[str, ...] = METRICS) -> None:
        import numpy as np

        self.users = 0
        self._metrics = [(name, *_parsed(name)) for name in metrics]
        self.depth = max(k for _, _, k in self._metrics)
        self._discount = 1 / np.log2(np.arange(2, self.depth + 2))
        self._ideal = np.cumsum(self._discount)
        self._sums = dict.fromkeys(metrics, 0.0)
        self._shown = {name: np.zeros(items, bool) for name, kind, _ in self._metrics if kind == "coverage"}

    def add(self, ranking: NDArray[np.intp], scored: NDArray[Any]) -> None:
        """Count one user: its ranking (the best first) and the items that were held out."""
        import numpy as np

        hits = np.isin(ranking[: self.depth], scored)
        self.users += 1
        for name, kind, k in self._metrics:
            if kind == "coverage":
                self._shown[name][ranking[:k]] = True
            else:
                self._sums[name] += self._one(kind, k, hits[:k], len(scored))

    def _one(self, kind: str, k: int, hits: NDArray[np.bool_], scored: int) -> float:
        if kind == "ndcg":
            return float(self._discount[: len(hits)][hits].sum() / self._ideal[min(k, scored) - 1])
        if kind == "recall":
            return float(hits.sum() / min(k, scored))
        if kind == "hr":
            return float(hits.any())
        return float(1 / (1 + hits.argmax())) if hits.any() else 0.0

    def means(self) -> dict[str, float]:
        """Every metric, as the mean over the users counted."""
        means = {name: total / self.users for name, total in self._sums.items()}
        return means | {name: float(shown.mean()) for name, shown in self._shown.items()}


def _parsed(name: str) -> tuple[str, int]:
    kind, _, k = name.partition("@")
    if kind not in ("ndcg", "recall", "hr", "mrr", "coverage") or not k.isdigit():
        raise ValueError(f"{name!r} is not a metric: write ndcg@10, recall@20, hr@10, mrr@10 or coverage@10")
    return kind, int(k)


User = tuple["NDArray[np.float32]", "NDArray[Any]", "NDArray[Any]"]
"""A user's vector (factors,), the items it is known to have (not ranked), and its scored items."""


def evaluate(
    users: Iterator[User],
    item_factors: NDArray[np.float32],
    *,
    block: int,
    metrics: tuple[str, ...] = METRICS,
    after_block: Callable[[int], None] = lambda users: None,
) -> Mapping[str, float]:
    """Rank all items for every user and average the metrics.

    Parameters
    ----------
    users
        The users, lazily.
    item_factors
        Shape (items, factors).
    block
        Users scored at a time: ``block * items`` scores of 4 bytes are alive.
    after_block
        Called with the number of users just counted.
    """
    import numpy as np

    items, factors = item_factors.shape
    tally = Tally(items, metrics)
    vectors = np.empty((block, factors), np.float32)
    scores = np.empty((block, items), np.float32)
    while True:
        waiting: list[tuple[Any, Any]] = []
        for vector, known, scored in users:
            vectors[len(waiting)] = vector
            waiting.append((known, scored))
            if len(waiting) == block:
                break
        if not waiting:
            return tally.means()
        count = len(waiting)
        np.matmul(vectors[:count], item_factors.T, out=scores[:count])
        for row, (known, scored) in zip(scores[:count], waiting, strict=True):
            row[known] = -np.inf
            tally.add(top_k(row, tally.depth), scored)
        after_block(count)
