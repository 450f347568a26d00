"""Ranking metrics, counted user by user, with bootstrap intervals.

For a user with the set T of scored items and a ranking, the best first, of which the first k are looked at:

recall      hits / min(k, |T|) (Liang et al. 2018); with ``plain_recall`` hits / |T| (He et al. 2020, LightGCN)
precision   hits / k
ndcg        sum over hits of 1/log2(rank + 1), over the same sum of an ideal ranking
map         sum over hits of the precision at their rank, over min(k, |T|)
mrr         1 / rank of the first hit
hr          1 if there is a hit
novelty     mean of -log2 of the share of users who have the item

and over all users together

coverage    share of all items that somebody is shown
gini        Gini coefficient of how often each item is shown: 0 all alike, 1 one item only
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METRICS = (
    "ndcg@10", "ndcg@20", "ndcg@100", "recall@10", "recall@20", "recall@50", "precision@10", "map@10", "mrr@10",
    "hr@10", "coverage@10", "gini@10",
)  # fmt: skip
"""What is reported, as name@k."""
EACH = ("ndcg", "recall", "precision", "map", "mrr", "hr", "novelty")
"""Metrics of one user."""
TOGETHER = ("coverage", "gini")
"""Metrics of all users together."""
RESAMPLES = 1000
"""Bootstrap samples of the users."""
INTERVAL = (2.5, 97.5)
"""Percentiles of their means that are reported."""


class Tally:
    """Values of the metrics for each user.

    Parameters
    ----------
    items
        How many there are.
    owners, users
        For ``novelty``: how many users have each item, and how many users there are.
    """

    def __init__(
        self,
        items: int,
        metrics: tuple[str, ...] = METRICS,
        *,
        plain_recall: bool = False,
        owners: NDArray[np.int64] | None = None,
        users: int = 0,
    ) -> None:
        import numpy as np

        parsed = {name: _parsed(name) for name in metrics}
        self._each = {name: pair for name, pair in parsed.items() if pair[0] in EACH}
        self._together = {name: pair for name, pair in parsed.items() if pair[0] in TOGETHER}
        self._order = metrics
        self.depth = max(k for _, k in parsed.values())
        self._discount = 1 / np.log2(np.arange(2, self.depth + 2))
        self._ideal = np.cumsum(self._discount)
        self._plain_recall = plain_recall
        self._shown = {k: np.zeros(items, np.int64) for _, k in self._together.values()}
        self._surprise = None if owners is None else -np.log2(np.maximum(owners, 1) / max(users, 1))
        if self._surprise is None and any(kind == "novelty" for kind, _ in parsed.values()):
            raise ValueError("novelty needs to know how many users have each item")
        self.users = 0
        """How many have been counted."""
        self._values = array("d")
        """Theirs, one after the other."""

    def add(self, ranking: NDArray[np.intp], scored: NDArray[Any]) -> None:
        """Count one user: its ranking (the best first) and the items that were held out."""
        import numpy as np

        ranking = ranking[: self.depth]
        hits = np.isin(ranking, scored)
        self.users += 1
        self._values.extend(self._one(kind, k, ranking, hits, len(scored)) for kind, k in self._each.values())
        for k, shown in self._shown.items():
            shown[ranking[:k]] += 1

    def _one(self, kind: str, k: int, ranking: NDArray[np.intp], hits: NDArray[np.bool_], scored: int) -> float:
        import numpy as np

        hits = hits[:k]
        places = np.flatnonzero(hits)
        if kind == "novelty":
            assert self._surprise is not None
            return float(self._surprise[ranking[:k]].mean()) if len(ranking) else 0.0
        if not len(places):
            return 0.0
        if kind == "ndcg":
            return float(self._discount[places].sum() / self._ideal[min(k, scored) - 1])
        if kind == "recall":
            return len(places) / (scored if self._plain_recall else min(k, scored))
        if kind == "precision":
            return len(places) / k
        if kind == "map":
            return float((np.arange(1, len(places) + 1) / (places + 1)).sum() / min(k, scored))
        return 1.0 if kind == "hr" else float(1 / (1 + places[0]))

    def per_user(self) -> dict[str, NDArray[np.float64]]:
        """Each user's values, in the order in which they were counted."""
        import numpy as np

        table = np.array(self._values).reshape(self.users, len(self._each))
        return dict(zip(self._each, table.T, strict=True))

    def means(self) -> dict[str, float]:
        """Every metric over the users counted."""
        found = {name: float(values.mean()) for name, values in self.per_user().items()}
        for name, (kind, k) in self._together.items():
            shown = self._shown[k]
            found[name] = float((shown > 0).mean()) if kind == "coverage" else gini(shown)
        return {name: found[name] for name in self._order}

    def intervals(self, *, seed: int = 0) -> Mapping[str, tuple[float, float]]:
        """95 % intervals of the means of one user's metrics, by resampling the users."""
        import numpy as np

        values = np.stack(list(self.per_user().values()), 1)
        random, users = np.random.default_rng(seed), len(values)
        means = np.empty((RESAMPLES, values.shape[1]))
        for row in means:
            times = np.bincount(random.integers(users, size=users), minlength=users)
            row[:] = times @ values / users
        low, high = np.percentile(means, INTERVAL, axis=0)
        return {name: (float(low[n]), float(high[n])) for n, name in enumerate(self._each)}


def gini(counts: NDArray[np.int64]) -> float:
    """Gini coefficient of counts (half the mean absolute difference over the mean); 0 where all are zero."""
    import numpy as np

    ordered = np.sort(counts).astype(np.float64)
    size, total = len(ordered), ordered.sum()
    if not total:
        return 0.0
    return float((2 * np.arange(1, size + 1) - size - 1) @ ordered / (size * total))


def _parsed(name: str) -> tuple[str, int]:
    kind, _, k = name.partition("@")
    if kind not in (*EACH, *TOGETHER) or not k.isdigit() or int(k) < 1:
        raise ValueError(f"{name!r} is not a metric: write one of {', '.join((*EACH, *TOGETHER))}, then @ and a depth")
    return kind, int(k)
