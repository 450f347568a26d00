"""Full-ranking evaluation in blocks of users: nothing of size users x items ever exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from apps.recsys.evaluation.metrics import Tally
from apps.recsys.models.embedding.user_encoders import FoldIn
from apps.recsys.models.top_k import top_k

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


User = tuple["NDArray[Any]", "NDArray[np.float32]", "NDArray[Any]"]
"""A user's known items (not ranked) with their values, and its scored items."""


def evaluate(
    users: Iterator[User],
    fold_in: FoldIn,
    item_factors: NDArray[np.float32],
    *,
    block: int,
    threads: int = 1,
    tally: Tally,
    after_block: Callable[[int], None] = lambda users: None,
) -> None:
    """Rank all items for every user and count them in ``tally``.

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
