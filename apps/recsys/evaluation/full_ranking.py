"""Full-ranking evaluation in blocks of users, without an array of size users x items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from apps.recsys.evaluation.metrics import Tally
from apps.recsys.models.scorers import Scorer
from apps.recsys.models.top_k import top_k

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


User = tuple["NDArray[Any]", "NDArray[np.float32]", "NDArray[Any]"]
"""Items to fold in, which are not ranked; their values; items to score."""


def evaluate(
    users: Iterator[User],
    scorer: Scorer,
    *,
    block: int,
    threads: int = 1,
    tally: Tally,
    popular: NDArray[np.float32] | None = None,
    after_block: Callable[[int], None] = lambda users: None,
) -> None:
    """Rank all items for every user, and add the rankings to ``tally``.

    Parameters
    ----------
    users
        The users; read block by block.
    scorer
        Scores all items; called in several threads.
    block
        Users ranked at a time: the scores take ``4 * block * items`` bytes.
    threads
        Threads that share a block; BLAS runs one thread in each.
    popular
        Scores of the items for users without a history, shape (items,); ``None``: there are no such users.
    after_block
        Called with the number of users in each block.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from threadpoolctl import threadpool_limits

    share = -(-block // threads)
    workspaces = [scorer.workspace(share) for _ in range(threads)]

    def rank(users: Sequence[User], workspace: Any) -> list[NDArray[np.intp]]:
        scores = scorer.scores([(items, values) for items, values, _ in users], workspace)
        for row, (items, _, _) in zip(scores, users, strict=True):
            if popular is not None and not len(items):
                row[:] = popular
            row[items] = -np.inf
        return [top_k(row, tally.depth) for row in scores]

    with ThreadPoolExecutor(threads) as pool, threadpool_limits(1, "blas"):
        while batch := list(islice(users, block)):
            starts = range(0, len(batch), share)
            shares = [batch[start : start + share] for start in starts]
            rankings = chain.from_iterable(pool.map(rank, shares, workspaces))
            tally.add_all(list(rankings), [scored for _, _, scored in batch])
            after_block(len(batch))
