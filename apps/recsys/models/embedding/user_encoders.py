"""User vectors from histories, for each kind of model. Their dot products with the items' vectors are the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.recsys.models.scan.rows import LEAST_LENGTH, Lengths, Rows, row_lengths

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FoldIn = Callable[["NDArray[Any]", "NDArray[np.float32]"], "NDArray[np.float32]"]
"""From the items of a history, shape (n,), and their values to a user vector of shape (factors,)."""
Contributions = Callable[["NDArray[Any]", "NDArray[np.float32]"], "NDArray[np.float64]"]
"""From the same to each item's contribution to the user vector: shape (n, factors), with the vector as its sum."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """Computes user vectors.

    Attributes
    ----------
    fold_in
        From a history to a vector.
    contributions
        From a history to the contribution of each of its items; ``None`` if the vector is not a sum over the items.
    """

    fold_in: FoldIn
    contributions: Contributions | None = None

    def __call__(self, items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The user's vector, shape (factors,)."""
        return self.fold_in(items, values)


GRADIENT_STEPS, FIRST_STEP = 10, 0.3
"""Steps of ``fold_in_gradient``. The first turns the vector by about this angle; the angles shrink linearly."""
COMPARED = 4096
"""Items that ``fold_in_gradient`` samples once, to stand for the whole catalogue."""
COMPARED_POPULARITY = 0.5
"""They are drawn in proportion to their counts to this power if the model has a prior."""
POSITIVE_ROWS = 256
"""Items of a history that ``fold_in_newton`` handles together."""
NEWTON_STEPS = 2
"""Steps of ``fold_in_newton``; a third does not change a ranking measurably."""


def least_squares(item_factors: NDArray[np.float32] | Rows, hyper: Mapping[str, Any]) -> Encoder:
    """The encoder of ``ials``: the least-squares solution for one user (``ials.fold_in``).

    Parameters
    ----------
    item_factors
        Shape (items, factors).
    hyper
        Hyper-parameters of the model.
    """
    from apps.recsys.models.als import ials
    from apps.recsys.models.als.confidence import confidence

    shared = item_factors.gramian() if isinstance(item_factors, Rows) else ials.gramian(item_factors)

    def fold_in(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
        return ials.fold_in(shared, item_factors, items, confidence(values, hyper), hyper)

    def contributions(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float64]:
        return ials.contributions(shared, item_factors, items, confidence(values, hyper), hyper)

    return Encoder(fold_in, contributions)


def constant() -> Encoder:
    """The encoder of ``popularity``: every user's vector is 1."""
    import numpy as np

    return Encoder(lambda items, values: np.ones(1, np.float32))


def fold_in_newton(
    item_factors: NDArray[np.float32] | Rows, negatives: NDArray[np.float32], hyper: Mapping[str, Any]
) -> Encoder:
    """The encoder of ``bpr``: the vector that ranks a user's items best above sampled negatives, by Newton's method.

    It minimises ``mean(log(1 + exp(negative - positive))) + user_regularization / 2 * |x|²`` over all pairs of a
    positive and a negative item's score: the loss of training, which is convex for fixed items. Users of the training
    data are recomputed too; with a stronger regularisation than that of training they rank better (``docs/recsys.md``).

    Parameters
    ----------
    item_factors
        Shape (items, factors), the bias last.
    negatives
        Vectors of the items that stand for those a user did not have, shape (n, factors).
    hyper
        Hyper-parameters of the model.
    """
    import numpy as np

    ridge = np.float32(hyper["user_regularization"])
    free = item_factors.shape[1] - 1
    negative_vectors = negatives[:, :free]

    def fold_in(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
        vector = np.zeros(free + 1, np.float32)
        vector[free] = 1
        count = np.float32(max(1, len(items) * len(negatives)))
        for _ in range(NEWTON_STEPS if len(items) else 0):
            gradient, hessian = ridge * vector[:free], ridge * np.eye(free, dtype=np.float32)
            negative_scores = negatives @ vector
            for start in range(0, len(items), POSITIVE_ROWS):
                rows = item_factors[items[start : start + POSITIVE_ROWS]]
                positive_vectors = rows[:, :free]
                # The sigmoid of negative - positive: the probability that the pair is ranked wrongly.
                wrong = 0.5 - 0.5 * np.tanh(0.5 * ((rows @ vector)[:, None] - negative_scores))
                weight = wrong * (1 - wrong) / count
                wrong /= count
                gradient += wrong.sum(0) @ negative_vectors - wrong.sum(1) @ positive_vectors
                mixed = positive_vectors.T @ (weight @ negative_vectors)
                hessian += (positive_vectors.T * weight.sum(1)) @ positive_vectors
                hessian += (negative_vectors.T * weight.sum(0)) @ negative_vectors - mixed - mixed.T
            vector[:free] -= np.linalg.solve(hessian, gradient)
        return vector

    return Encoder(fold_in)


def normalise(item_factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide each vector by its length, in place; returns the lengths, shape (items,)."""
    lengths = row_lengths(item_factors)
    item_factors /= lengths[:, None]
    return lengths


def _unit_length(vectors: NDArray[np.float32] | Rows) -> NDArray[np.float32] | Lengths:
    """Divide each vector by its length, in place; returns the lengths."""
    return vectors.normalise() if isinstance(vectors, Rows) else normalise(vectors)


def fold_in_gradient(
    vectors: NDArray[np.float32] | Rows, hyper: Mapping[str, Any], prior: NDArray[np.float32] | None = None
) -> Encoder:
    """The encoder of an embedding with learned user vectors: gradient steps on the loss from the mean of the items.

    Trained user vectors lag behind the item vectors, so all are recomputed: they rank better (``docs/recsys.md``), and
    no user's vector has to be stored.

    Parameters
    ----------
    vectors
        Of the items, shape (items, factors). They are divided by their lengths, in place.
    hyper
        Hyper-parameters of the model.
    prior
        What is added to each item's score, shape (items,), if the model has a ``prior``: users' vectors then have one
        more number, which is 1.
    """
    import numpy as np

    _unit_length(vectors)
    chosen, offsets = compared(len(vectors), hyper, prior)
    negatives = vectors[chosen]
    softmax, margin = hyper["loss"] == "softmax", np.float32(hyper["margin"])
    sharpness = np.float32(1 / hyper["temperature"])
    negative_weight = np.float32(hyper["negative_weight"] / len(negatives))

    def weights(scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Derivative of the loss by the score of each sampled negative."""
        if not softmax:
            above: NDArray[np.float32] = negative_weight * (scores > margin)
            return above
        shares: NDArray[np.float32] = scores * sharpness + offsets
        shares = np.exp(shares - shares.max())
        shares /= shares.sum()
        return shares

    def fold_in(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
        mean = vectors[items].sum(0) / np.float32(max(1, len(items)))
        vector = mean / max(float(np.linalg.norm(mean)), LEAST_LENGTH)
        for step in range(GRADIENT_STEPS):
            gradient = weights(negatives @ vector) @ negatives - mean
            gradient -= (gradient @ vector) * vector  # along the sphere
            rate = FIRST_STEP * (1 - step / GRADIENT_STEPS) / max(float(np.linalg.norm(gradient)), LEAST_LENGTH)
            vector = vector - np.float32(rate) * gradient
            vector /= max(float(np.linalg.norm(vector)), LEAST_LENGTH)
        return vector if prior is None else np.append(vector, np.float32(1))

    return Encoder(fold_in)


def compared(
    items: int, hyper: Mapping[str, Any], prior: NDArray[np.float32] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The items that stand for the whole catalogue in ``fold_in_gradient``, and what is added to their scores.

    Parameters
    ----------
    items
        Number of items.
    hyper, prior
        As ``fold_in_gradient``.
    """
    import numpy as np

    if prior is None:
        return _sampled(np.zeros(items))
    # Popular items make up most of the softmax: drawn more often, each stands for fewer items.
    power = COMPARED_POPULARITY / (hyper["prior"] * hyper["temperature"])
    chosen, offsets = _sampled(power * prior.astype(np.float64))
    offsets += prior[chosen] / np.float32(hyper["temperature"])
    return chosen, offsets


def _sampled(log_weights: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw ``COMPARED`` items without repetition.

    Items with the smallest exponential numbers divided by their weights are drawn (Efraimidis and Spirakis 2006).
    Given the first number that was not drawn, an item's inclusion probability is known (Duffield, Lund and Thorup
    2007).

    Parameters
    ----------
    log_weights
        Logarithms of the items' weights, shape (items,).

    Returns
    -------
    items, log_counts
        The drawn items, increasing, and the logarithm of how many items each of them stands for.
    """
    import numpy as np

    size = len(log_weights)
    if size <= COMPARED:
        return np.arange(size), np.zeros(size, np.float32)
    keys = np.log(np.random.default_rng(0).exponential(size=size)) - log_weights
    order = np.argsort(keys)
    chosen = np.sort(order[:COMPARED])
    probability = -np.expm1(-np.exp(log_weights[chosen] + keys[order[COMPARED]]))
    return chosen, -np.log(probability).astype(np.float32)


def of_kind(
    kind: str,
    item_factors: NDArray[np.float32] | Rows,
    hyper: Mapping[str, Any],
    *,
    negatives: NDArray[np.int32] | None = None,
) -> Encoder:
    """The encoder of ``ials``, ``bpr`` or ``popularity``.

    Parameters
    ----------
    kind
        Kind of model.
    item_factors
        Shape (items, factors).
    hyper
        Hyper-parameters of the model.
    negatives
        Rows of the items that ``bpr`` compares with.
    """
    if kind == "popularity":
        return constant()
    if negatives is None:
        return least_squares(item_factors, hyper)
    return fold_in_newton(item_factors, item_factors[negatives], hyper)


def embedding(
    item_factors: NDArray[np.float32] | Rows,
    user_side: NDArray[np.float32] | Rows | None,
    hyper: Mapping[str, Any],
    prior: NDArray[np.float32] | None = None,
) -> Encoder:
    """The encoder of an embedding, by its ``user_vectors``.

    Parameters
    ----------
    item_factors
        Shape (items, factors), with a column for the prior if there is one and it is not given. May be changed in
        place.
    user_side
        Vectors of the items as parts of users, shape (items, factors); ``None``: the same as ``item_factors``.
    hyper
        Hyper-parameters of the model.
    prior
        As ``fold_in_gradient``.
    """
    if hyper.get("user_vectors", "history") == "learned":
        if prior is None and hyper.get("prior") and not isinstance(item_factors, Rows):
            item_factors, prior = item_factors[:, :-1], item_factors[:, -1]
        return fold_in_gradient(item_factors, hyper, prior)
    return sum_of_items(item_factors, user_side, cosine=hyper["loss"] != "bpr")


def sum_of_items(
    item_factors: NDArray[np.float32] | Rows, user_side: NDArray[np.float32] | Rows | None, *, cosine: bool
) -> Encoder:
    """Sum of the vectors of the items, divided by the root of their number or, for cosines, by its length.

    Parameters
    ----------
    item_factors
        Shape (items, factors). For cosines each vector is divided by its length, in place.
    user_side
        Vectors of the items as parts of users; ``None``: the same as ``item_factors``.
    cosine
        True if scores are cosines.
    """
    import numpy as np

    lengths: NDArray[np.float32] | Lengths | None = None
    if cosine:
        lengths = _unit_length(item_factors)

    def lengths_of(items: NDArray[Any]) -> NDArray[np.float32]:
        return np.ones(len(items), np.float32) if lengths is None else lengths[items]

    def fold_in(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
        total: NDArray[Any] = lengths_of(items) @ item_factors[items] if user_side is None else user_side[items].sum(0)
        size = float(np.linalg.norm(total)) if cosine else len(items) ** 0.5
        vector: NDArray[np.float32] = (total / np.float32(max(size, LEAST_LENGTH))).astype(np.float32, copy=False)
        return vector

    def contributions(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float64]:
        rows: NDArray[Any] = item_factors[items] if user_side is None else user_side[items]
        if user_side is None:
            rows = rows * lengths_of(items)[:, None]
        summands: NDArray[np.float64] = rows.astype(np.float64)
        size = float(np.linalg.norm(summands.sum(0))) if cosine else len(items) ** 0.5
        summands /= max(size, LEAST_LENGTH)
        return summands

    return Encoder(fold_in, contributions)
