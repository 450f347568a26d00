"""Implicit ALS: training by ``implicit``, and the fold-in of a user from its history.

Objective (Hu, Koren, Volinsky, "Collaborative filtering for implicit feedback datasets", 2008): every pair counts
with confidence 1 and preference 0, an interaction with confidence ``alpha * weight(value)`` and preference 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from apps.recsys.history import History
from apps.recsys.split import Kept

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HYPER: Mapping[str, Any] = {"alpha": 2.0, "regularization": 10.0, "iterations": 15, "weight": "log"}
"""Hyper-parameters with their defaults (chosen on MovieLens-1M and Last.fm, see ``apps/recsys/bench``)."""
WEIGHTS = ("log", "value", "binary")
"""How a value becomes a weight: log(1 + value), the value itself, or 1."""
FIRST_SCALE = 0.01
"""Factors start uniform in [0, 0.01), as ``implicit`` starts them."""


def confidence(values: NDArray[np.float32], hyper: Mapping[str, Any]) -> NDArray[np.float32]:
    """Confidence of interactions: ``alpha * weight(value)``, float32, in a new array."""
    import numpy as np

    if hyper["weight"] == "binary":
        return np.full(len(values), hyper["alpha"], np.float32)
    weights = np.log1p(values) if hyper["weight"] == "log" else values.copy()
    weights *= np.float32(hyper["alpha"])
    return weights


def training_matrix(history: History, kept: Kept, *, items: int, hyper: Mapping[str, Any]) -> Any:
    """The confidences to train on as a SciPy CSR matrix (users, items), allocated once at its final size."""
    import numpy as np
    import scipy.sparse

    lengths = np.zeros(history.rows, np.int64)
    for start, stop in history.blocks():
        before = np.concatenate([[0], np.cumsum(kept.mask(start, stop))])
        lengths[start:stop] = np.diff(before[history.indptr[start : stop + 1] - history.indptr[start]])
    users = lengths > 0
    indptr = np.zeros(int(users.sum()) + 1, np.int32 if lengths.sum() < 2**31 else np.int64)
    np.cumsum(lengths[users], out=indptr[1:])
    indices, data = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    at = 0
    for start, stop in history.blocks():
        keep = kept.mask(start, stop)
        part = history.items(start, stop)[keep]
        indices[at : at + len(part)] = part
        data[at : at + len(part)] = confidence(history.values(start, stop)[keep], hyper)
        at += len(part)
    return scipy.sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, items), copy=False)


def fit(
    matrix: Any, *, factors: int, hyper: Mapping[str, Any], threads: int, seed: int, after_iteration: Callable[[], None]
) -> NDArray[np.float32]:
    """Train, and return the items' factors, shape (items, factors).

    The result is that of ``AlternatingLeastSquares(random_state=seed).fit(matrix)``: the first factors are the same
    numbers, drawn in place because ``implicit`` draws them into a copy.

    Parameters
    ----------
    after_iteration
        Called after each iteration; what it raises ends the training.
    """
    import numpy as np
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    random = np.random.default_rng(seed)
    # implicit runs its own threads; BLAS below them must not (its check warns of a tenfold slowdown).
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=factors,
            regularization=hyper["regularization"],
            alpha=1.0,  # the confidences have it already: implicit would multiply into a copy
            iterations=hyper["iterations"],
            num_threads=threads,
        )
        model.user_factors, model.item_factors = (_first_factors(random, n, factors) for n in matrix.shape)
        model.fit(matrix, show_progress=False, callback=lambda *_: after_iteration())
    result: NDArray[np.float32] = model.item_factors
    return result


def _first_factors(random: np.random.Generator, rows: int, factors: int) -> NDArray[np.float32]:
    import numpy as np

    first = np.empty((rows, factors), np.float32)
    random.random(out=first, dtype=np.float32)
    first *= FIRST_SCALE
    return first


def gramian(item_factors: NDArray[np.float32], regularization: float) -> NDArray[np.float32]:
    """``Y'Y + regularization * I``, shape (factors, factors): the part of the fold-in that all users share."""
    import numpy as np

    shared = item_factors.T @ item_factors
    shared[np.diag_indices_from(shared)] += np.float32(regularization)
    return shared


def fold_in(
    shared: NDArray[np.float32],
    item_factors: NDArray[np.float32],
    items: NDArray[np.integer[Any]],
    confidences: NDArray[np.float32],
) -> NDArray[np.float32]:
    """A user's vector from its history: ``(Y'Y + λI + Y'(C - I)Y)⁻¹ Y'Cp`` (Hu et al. 2008, equation 4).

    Parameters
    ----------
    shared
        ``gramian`` of the same factors.
    items, confidences
        The history, shape (n,).

    Returns
    -------
    NDArray
        Shape (factors,), float32; zeros for an empty history.
    """
    import numpy as np

    rows = item_factors[items]
    system = shared + rows.T @ (rows * (confidences - 1)[:, None])
    solved: NDArray[np.float32] = np.linalg.solve(system, confidences @ rows)
    return solved
