"""Full-ranking evaluation in blocks of users: nothing of size users x items ever exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from apps.recsys.encoders import Fold

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


User = tuple["NDArray[Any]", "NDArray[np.float32]", "NDArray[Any]"]
"""A user's known items (not ranked) with their values, and its scored items."""


def evaluate(
    users: Iterator[User],
    fold_in: Fold,
    item_factors: NDArray[np.float32],
    *,
    block: int,
    threads: int = 1,
    metrics: tuple[str, ...] = METRICS,
    after_block: Callable[[int], None] = lambda users: None,
) -> Mapping[str, float]:
    """Rank all items for every user and average the metrics.

    Parameters
    ----------
    users
        The users, lazily.
    fold_in
        Called in several threads.
    item_factors
        Shape (items, factors).
    block
        Users ranked at a time: ``block * items`` scores of 4 bytes are alive.
    threads
        They share the block; BLAS runs one thread in each.
    after_block
        Called with the number of users just counted.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from threadpoolctl import threadpool_limits

    tally = Tally(len(item_factors), metrics)
    scores = np.empty((block, len(item_factors)), np.float32)
    share = -(-block // threads)

    def rank(part: Sequence[User], scores: NDArray[np.float32]) -> list[NDArray[np.intp]]:
        vectors = np.stack([fold_in(known, values) for known, values, _ in part])
        scores = np.matmul(vectors, item_factors.T, out=scores[: len(part)])
        for row, (known, _, _) in zip(scores, part, strict=True):
            row[known] = -np.inf
        return [top_k(row, tally.depth) for row in scores]

    with ThreadPoolExecutor(threads) as pool, threadpool_limits(1, "blas"):
        while batch := list(islice(users, block)):
            starts = range(0, len(batch), share)
            parts = [batch[start : start + share] for start in starts]
            rankings = chain.from_iterable(pool.map(rank, parts, [scores[start : start + share] for start in starts]))
            for ranking, (_, _, scored) in zip(rankings, batch, strict=True):
                tally.add(ranking, scored)
            after_block(len(batch))
    return tally.means()
