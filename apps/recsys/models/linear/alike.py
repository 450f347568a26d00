"""How far items of a linear filter are alike: cosines of their users, each weighted by one over his number of items.

A large filter looks at ``readers.READ`` users of the items at most, at even distances.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apps.recsys.models.linear.readers import Readers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.models.linear.log import Log

LEAST = 1e-12
"""Squared length of an item's column that divides at least: nobody had it."""


def squares(log: Log) -> NDArray[np.float32]:
    """Squared lengths of the items' columns of weighted users, by one pass over the interactions: shape (items,)."""
    import numpy as np

    own = np.zeros(log.items, np.float32)
    for block, degrees in log.blocks():
        own += block.T @ (1 / degrees)
    return own


def shared_by_readers(readers: Readers, row: int) -> NDArray[np.float32]:
    """Products of the column of one item with all, shape (items,), by the users whom ``readers.shared`` looks at."""
    import numpy as np

    found = readers.shared(np.array([row]), np.ones(1, np.float32))
    total: NDArray[np.float32] | None = None
    for piece in readers.pieces(found):
        some = readers.added(found, piece)
        total = some if total is None else total + some
    return np.zeros(readers.items, np.float32) if total is None else total


def similarities(shared: NDArray[np.float32], own: NDArray[np.float32], row: int) -> NDArray[np.float32]:
    """Cosines of an item with all; ``shared`` are the products of the columns, and are overwritten."""
    import numpy as np

    shared /= np.sqrt(np.maximum(own * own[row], np.float32(LEAST)))
    return shared


def closeness(log: Log, readers: Readers | None, rows: NDArray[Any]) -> NDArray[np.float32]:
    """Cosines of the items ``rows`` with each other, shape (n, n), by their readers or by all interactions."""
    import numpy as np

    shared = np.zeros((len(rows), len(rows)), np.float32)
    if readers is not None:
        found = readers.shared(rows, np.ones(len(rows), np.float32))
        # Of an item that is cut, one in ``scales`` users is looked at; who has several items is the more likely to be.
        missed = np.log(np.maximum(1 - 1 / np.maximum(found.scales, 1), np.float32(LEAST)))
        for piece in readers.pieces(found):
            users = found.users[piece]
            some = readers.rows(users)[:, rows]
            shared += _products(some, readers.powers(users) * -np.expm1(some @ missed))
    else:
        for block, degrees in log.blocks():
            shared += _products(block[:, rows], degrees)
    own = np.sqrt(np.maximum(shared.diagonal(), np.float32(LEAST)))
    shared /= own
    shared /= own[:, None]
    return shared


def _products(some: Any, degrees: NDArray[np.float32]) -> NDArray[np.float32]:
    """Products of some columns of a block of users, each over his degree."""
    import numpy as np

    some.data = np.repeat(degrees.astype(np.float32) ** -0.5, np.diff(some.indptr))
    products: NDArray[np.float32] = (some.T @ some).toarray()
    return products
