"""Score an embedding whose rows are shared out: each rank ranks its own items, and the leader joins the lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apps.recsys.evaluation.metrics import Tally
from apps.recsys.models.embedding import user_encoders
from apps.recsys.models.scan.rows import Rows, row_lengths
from apps.recsys.models.top_k import top_k
from apps.recsys.planning.embedding_terms import SCORED_ROWS
from apps.recsys.training.validation import METRICS
from common.compression.embeddings import EmbeddingTable
from common.compression.stored import StoredRows
from common.training.distributed.group import Group

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apps.recsys.data.csr_store import History
    from apps.recsys.data.splits import HeldOut, Kept
    from apps.recsys.models.embedding.model import EmbeddingNetwork


class _TableRows(Rows):
    """Rows of a table that all ranks ask for together."""

    def __init__(self, table: EmbeddingTable) -> None:
        self._table = table
        super().__init__(table.rows, table.width)

    def __getitem__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._table.read(torch.from_numpy(np.asarray(rows, np.int64))).numpy()
        return found / row_lengths(found)[:, None] if self._unit else found

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        for start in range(0, len(self), SCORED_ROWS):
            span = slice(start, min(start + SCORED_ROWS, len(self)))
            yield span, self[np.arange(span.start, span.stop)]


def score(
    network: EmbeddingNetwork,
    hyper: Mapping[str, Any],
    prior: NDArray[np.float32] | None,
    *,
    group: Group,
    history: History,
    hidden: HeldOut,
    kept: Kept,
    block: int,
) -> Mapping[str, float]:
    """Rank all items for the users with hidden items; all ranks call it.

    Parameters
    ----------
    network
        The network.
    hyper
        Its hyper-parameters.
    prior
        Prior score added to each item's, shape (items,); ``None``: nothing is added.
    group
        The ranks.
    history, hidden, kept
        As ``validation.score``.
    block
        Users that are ranked at a time.

    Returns
    -------
    Mapping
        Means of ``validation.METRICS`` over the users; of use on the leader only.
    """
    items = network.items.form
    assert isinstance(items, StoredRows)
    user_side = None if network.user_side is None else _TableRows(network.user_side)
    encoder = user_encoders.embedding(_TableRows(network.items), user_side, hyper, prior)
    own_prior = None if prior is None else prior[items.own.start : items.own.stop]
    tally = Tally(network.items.rows, METRICS)
    rows = iter(enumerate(hidden.users))
    scores = np.empty((block, len(items.own)), np.float32)
    while some := list(islice(rows, block)):
        histories = [(row, *_trained(history, kept, int(user))) for row, user in some]
        vectors = np.stack([encoder(seen, values) for _, seen, values in histories])
        _score(items, own_prior, network.cosine, vectors, scores[: len(some)])
        rankings = joined(scores, [seen for _, seen, _ in histories], items.own, tally.depth, group)
        if group.leads:
            tally.add_all(rankings, [hidden.items(row) for row, _, _ in histories])
    return tally.means() if group.leads else {}


def _trained(history: History, kept: Kept, user: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    mask = kept.mask(user, user + 1)
    return history.items(user)[mask], history.values(user)[mask]


def _score(
    items: StoredRows,
    prior: NDArray[np.float32] | None,
    cosine: bool,
    vectors: NDArray[np.float32],
    scores: NDArray[np.float32],
) -> None:
    """Write the users' scores of this rank's items."""
    width = vectors.shape[1] - (prior is not None)
    for start in range(0, len(items.own), SCORED_ROWS):
        span = slice(start, min(start + SCORED_ROWS, len(items.own)))
        rows: NDArray[np.float32] = items.read_own(torch.arange(span.start, span.stop)).numpy()
        scores[:, span] = vectors[:, :width] @ rows.T
        if cosine:
            scores[:, span] /= row_lengths(rows)
        if prior is not None:
            scores[:, span] += prior[span]


def joined(
    scores: NDArray[np.float32], seen: list[NDArray[Any]], own: range, depth: int, group: Group
) -> list[NDArray[np.intp]]:
    """Rank all items for some users, each rank its own; all ranks call it.

    Parameters
    ----------
    scores
        Of this rank's items, shape (users, own items); those of items that were seen are overwritten.
    seen
        Items that each user had.
    own
        This rank's items; those of lower ranks come before.
    depth
        Most items of a ranking.
    group
        The ranks.

    Returns
    -------
    list
        The best items of each user, on the leader; of equal scores the lower row first.
    """
    best = np.full((depth, len(seen)), -np.inf, np.float32)
    rows = np.zeros((depth, len(seen)), np.int64)
    for user, items in enumerate(seen):
        line = scores[user]
        line[items[(items >= own.start) & (items < own.stop)] - own.start] = -np.inf
        first = top_k(line, depth)
        best[: len(first), user], rows[: len(first), user] = line[first], first + own.start
    _, (every, which) = group.rows((torch.from_numpy(best), torch.from_numpy(rows)))
    found, named = every.numpy(), which.numpy()
    rankings = []
    for user in range(len(seen) if group.leads else 0):
        order = np.argsort(-found[:, user], kind="stable")[:depth]  # lower ranks have lower rows
        order = order[found[order, user] > -np.inf]
        rankings.append(named[order, user].astype(np.intp))
    return rankings
