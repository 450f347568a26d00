"""Items of implicit ALS as entries of code books: each row's normal equations solved over the entries that there are.

As ``discrete`` does for levels: the entries of a row are set one after the other, each to the one with the least loss
given the rest, then the row's scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apps.recsys.planning.compressing.workload import SYSTEMS
from apps.recsys.training.compressing.discrete import SWEEPS, Equations, rescaled
from common.compression.books import Books

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BESIDE = 4
"""Numbers of an entry that are compared, besides those of its columns."""


def batch_rows(books: Books) -> int:
    """Rows whose systems, and products of them with all entries of a group, a thread has at a time."""
    widest: int = max(columns.stop - columns.start for columns, _ in books.parts)
    return max(1, SYSTEMS // max(books.width**2, (1 << books.bits) * (widest + BESIDE)))


def descend(
    confidences: Any,
    found: NDArray[np.uint8],
    scales: NDArray[np.float32],
    users: NDArray[np.float32],
    books: Books,
    hyper: Mapping[str, Any],
    *,
    threads: int,
) -> None:
    """Change the entries and scales of some items in place, so that each row's loss falls.

    Parameters
    ----------
    confidences
        SciPy CSR, shape (items, users).
    found, scales
        Numbers of entries, shape (items, count), and scales, shape (items,).
    users
        Shape (users, width).
    books
        The entries.
    hyper
        As ``ials.HYPER``.
    threads
        Threads that share the rows. BLAS must run one thread in each.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    equations, size = Equations.of(confidences, users, hyper), batch_rows(books)

    def work(start: int) -> None:
        rows = np.arange(start, min(start + size, len(found)))
        systems, right = equations.of_rows(rows)
        some, own = found[rows], scales[rows]
        current = books.values(some, own)
        rest = right - np.einsum("nij,nj->ni", systems, current)
        for _ in range(SWEEPS):
            for group, (columns, tables) in enumerate(books.parts):
                inner = np.ascontiguousarray(systems[:, columns, columns])
                for layer, table in enumerate(tables, group * books.layers):
                    before = table.take(some[:, layer], axis=0) * own[:, None]
                    wanted = rest[:, columns] + np.einsum("nij,nj->ni", inner, before)
                    loss = np.einsum("nei,ei->ne", table @ inner, table)
                    loss *= (own / 2)[:, None]
                    loss -= wanted @ table.T
                    some[:, layer] = loss.argmin(1)
                    change = table.take(some[:, layer], axis=0) * own[:, None] - before
                    rest -= np.einsum("nij,nj->ni", systems[:, :, columns], change)
                    current[:, columns] += change
        found[rows], scales[rows] = some, rescaled(own, current, right, rest)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, range(0, len(found), size)):
            pass
