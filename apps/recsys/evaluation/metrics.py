"""Ranking metrics per user, with bootstrap intervals of their means.

For a user with the set T of items to score, and the first k items of its ranking:

recall      hits / min(k, |T|) (Liang et al. 2018); with ``plain_recall`` hits / |T| (He et al. 2020, LightGCN)
precision   hits / k
ndcg        sum over hits of 1/log2(rank + 1), over the same sum of an ideal ranking
map         sum over hits of the precision at their rank, over min(k, |T|)
mrr         1 / rank of the first hit
hr          1 if there is a hit
novelty     mean of -log2 of the share of users who have the item

and for all users together:

coverage    share of all items that are shown to any user
gini        Gini coefficient of how often items are shown: 0 equally often, 1 a single item
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METRICS = (
    "ndcg@10", "ndcg@20", "ndcg@100", "recall@10", "recall@20", "recall@50", "precision@10", "map@10", "mrr@10",
    "hr@10", "coverage@10", "gini@10",
)  # fmt: skip
"""The reported metrics, as name@k."""
EACH = ("ndcg", "recall", "precision", "map", "mrr", "hr", "novelty")
"""Metrics that every user has."""
TOGETHER = ("coverage", "gini")
"""Metrics of all users together."""
DEEPEST = 1_000_000
"""Largest depth of a metric."""
COUNTED = 1 << 14
"""Ranks that are looked at together: a megabyte."""
RESAMPLES = 1000
"""Bootstrap samples of the users."""
INTERVAL = (2.5, 97.5)
"""Percentiles of the samples' means that are reported."""


class Tally:
    """Collects the metrics of users.

    Parameters
    ----------
    items
        Number of items.
    metrics
        Names of metrics, as name@k.
    plain_recall
        True to divide recall by |T| instead of min(k, |T|).
    owners, users
        For ``novelty``: number of users of each item, shape (items,), and number of users.

    Raises
    ------
    ValueError
        An unknown metric, or ``novelty`` without ``owners``.

    Examples
    --------
    >>> tally = Tally(4, ("recall@2",))
    >>> tally.add(np.array([3, 1]), np.array([1, 2]))
    >>> tally.means()
    {'recall@2': 0.5}
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
            raise ValueError("novelty needs the number of users of each item")
        self.users = 0
        """Number of users that were added."""
        self._values = array("d")
        """Metrics of all users, one user after the other."""

    def add(self, ranking: NDArray[np.intp], scored: NDArray[Any]) -> None:
        """Add a user.

        Parameters
        ----------
        ranking
            Rows of items, the best first.
        scored
            Rows of the items to score.
        """
        self.add_all([ranking], [scored])

    def add_all(self, rankings: Sequence[NDArray[np.intp]], scored: Sequence[NDArray[Any]]) -> None:
        """Add several users, ``COUNTED`` ranks at a time; parameters as ``add``, one of each a user."""
        size = max(1, COUNTED // self.depth)
        for start in range(0, len(rankings), size):
            self._add(rankings[start : start + size], scored[start : start + size])

    def _add(self, rankings: Sequence[NDArray[np.intp]], scored: Sequence[NDArray[Any]]) -> None:
        import numpy as np

        ranked = np.full((len(rankings), self.depth), -1, np.int64)
        for row, ranking in zip(ranked, rankings, strict=True):
            some = ranking[: self.depth]
            row[: len(some)] = some
        counts = np.array([len(items) for items in scored])
        hits = _hits(ranked, np.concatenate(scored), counts)
        self.users += len(rankings)
        table = np.empty((len(rankings), len(self._each)))
        for column, (kind, k) in zip(table.T, self._each.values(), strict=True):
            column[:] = self._of_all(kind, k, ranked, hits[:, :k], counts)
        self._values.frombytes(table.tobytes())
        for k, shown in self._shown.items():
            first = ranked[:, :k]
            np.add.at(shown, first[first >= 0], 1)

    def _of_all(
        self, kind: str, k: int, ranked: NDArray[np.int64], hits: NDArray[np.bool_], counts: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """One metric of several users, from the first ``k`` items of each: shape (users,)."""
        import numpy as np

        if kind == "novelty":
            assert self._surprise is not None
            first = ranked[:, :k]
            shown = np.where(first >= 0, self._surprise[first], 0).sum(1)
            novelty: NDArray[np.float64] = shown / np.maximum((first >= 0).sum(1), 1)
            return novelty
        number, most = hits.sum(1), np.minimum(counts, k)
        some = np.maximum(most, 1)
        values: NDArray[np.float64]
        if kind == "ndcg":
            values = (hits @ self._discount[: hits.shape[1]]) / self._ideal[some - 1]
        elif kind == "recall":
            values = number / (np.maximum(counts, 1) if self._plain_recall else some)
        elif kind == "precision":
            values = number / k
        elif kind == "map":
            values = (hits * np.cumsum(hits, 1) / np.arange(1, hits.shape[1] + 1)).sum(1) / some
        elif kind == "hr":
            values = (number > 0).astype(np.float64)
        else:
            values = (number > 0) / (1 + hits.argmax(1))
        return values

    def per_user(self) -> dict[str, NDArray[np.float64]]:
        """Values of the metrics by name, in the order in which users were added: shape (users,) each."""
        import numpy as np

        table = np.array(self._values).reshape(self.users, len(self._each))
        return dict(zip(self._each, table.T, strict=True))

    def means(self) -> dict[str, float]:
        """Means of the users' metrics, and the metrics of all users together."""
        means = {name: float(values.mean()) for name, values in self.per_user().items()}
        for name, (kind, k) in self._together.items():
            shown = self._shown[k]
            means[name] = float((shown > 0).mean()) if kind == "coverage" else gini(shown)
        return {name: means[name] for name in self._order}

    def intervals(self, *, seed: int = 0) -> Mapping[str, tuple[float, float]]:
        """95 % bootstrap intervals of the means of the users' metrics: lower and upper end by name."""
        return intervals(self.per_user(), seed=seed)


def _hits(ranked: NDArray[np.int64], items: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which ranked items are among a user's items to score, of which ``counts`` stand one after the other."""
    import numpy as np

    stride = 1 + max(int(ranked.max(initial=0)), int(items.max(initial=0)))
    wanted = np.repeat(np.arange(len(counts)) * stride, counts) + items
    keys = ranked + np.arange(len(ranked))[:, None] * stride
    return np.isin(keys, wanted) & (ranked >= 0)


def intervals(values: Mapping[str, NDArray[np.float64]], *, seed: int = 0) -> Mapping[str, tuple[float, float]]:
    """95 % percentile intervals of means over users, by ``RESAMPLES`` bootstrap samples of the users.

    All metrics are of the same samples. Differences of two models' values make a paired bootstrap.

    Parameters
    ----------
    values
        Values of the users by name, shape (users,) each.
    seed
        Seed of the samples.

    Returns
    -------
    Mapping
        Lower and upper end by name.
    """
    import numpy as np

    if not values:
        return {}
    table = np.stack(list(values.values()), 1)
    random, users = np.random.default_rng(seed), len(table)
    means = np.empty((RESAMPLES, table.shape[1]))
    for row in means:
        counts = np.bincount(random.integers(users, size=users), minlength=users)
        row[:] = counts @ table / users
    low, high = np.percentile(means, INTERVAL, axis=0)
    return {name: (float(low[n]), float(high[n])) for n, name in enumerate(values)}


def gini(counts: NDArray[np.int64]) -> float:
    """Gini coefficient of counts: half the mean absolute difference over the mean; 0 if all are zero.

    Examples
    --------
    >>> gini(np.array([2, 2])), gini(np.array([0, 4]))
    (0.0, 0.5)
    """
    import numpy as np

    ordered = np.sort(counts).astype(np.float64)
    size, total = len(ordered), ordered.sum()
    if not total:
        return 0.0
    return float((2 * np.arange(1, size + 1) - size - 1) @ ordered / (size * total))


def checked(name: str) -> str:
    """The name of a metric, with or without its depth.

    Raises
    ------
    ValueError
        There is no such metric, or its depth is not from 1 to ``DEEPEST``.
    """
    kind, at, k = name.partition("@")
    right = k.isascii() and k.isdecimal() and 0 < int(k) <= DEEPEST if at else True
    if kind not in (*EACH, *TOGETHER) or not right:
        kinds = ", ".join((*EACH, *TOGETHER))
        raise ValueError(f"{name!r} is not a metric: write one of {kinds}, then @ and a depth up to {DEEPEST:,}")
    return name


def _parsed(name: str) -> tuple[str, int]:
    kind, at, k = checked(name).partition("@")
    if not at:
        raise ValueError(f"{name!r} has no depth: write @ and a depth behind it")
    return kind, int(k)
