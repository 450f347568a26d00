"""From a history to a user's vector, for each kind of model. Its products with the items' vectors are its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Fold = Callable[["NDArray[Any]", "NDArray[np.float32]"], "NDArray[np.float32]"]
"""From items and their values to a vector of shape (factors,)."""
Parts = Callable[["NDArray[Any]", "NDArray[np.float32]"], "NDArray[np.float64]"]
"""From the same to what each item adds to the vector: shape (items, factors), with the vector as its sum."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A ``Fold``; where a user's vector is the sum of what each of its items adds to it, that too."""

    fold: Fold
    parts: Parts | None = None

    def __call__(self, items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The user's vector."""
        return self.fold(items, values)


DESCENTS, FIRST_DESCENT = 10, 0.3
"""Steps to a user's vector, the first of which turns it by about this angle; they shrink evenly."""
COMPARED = 4096
"""Items that stand for the whole catalogue meanwhile, drawn once."""
COMPARED_POPULARITY = 0.5
"""Power of their counts to which they are drawn, where there is a prior."""
KNOWN_ROWS = 256
"""Items of a history that ``pairwise`` looks at together."""
NEWTON_STEPS = 2
"""Steps of ``pairwise``; a third changes nothing that shows in a ranking."""
SHORTEST = 1e-12
"""Vectors are taken to be at least this long when they are divided by their length."""


def ridge(item_factors: NDArray[np.float32], hyper: Mapping[str, Any]) -> Encoder:
    """``ials``: the least-squares solution for one user (``ials.fold_in``)."""
    from apps.recsys.models.als import ials
    from apps.recsys.models.als.confidence import confidence

    shared = ials.gramian(item_factors)

    def fold(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
        return ials.fold_in(shared, item_factors, items, confidence(values, hyper), hyper)

    def parts(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float64]:
        return ials.parts(shared, item_factors, items, confidence(values, hyper), hyper)

    return Encoder(fold, parts)


def constant() -> Encoder:
    """``popularity``: all users are alike."""
    import numpy as np

    return Encoder(lambda items, values: np.ones(1, np.float32))


def pairwise(item_factors: NDArray[np.float32], others: NDArray[np.float32], hyper: Mapping[str, Any]) -> Encoder:
    """``bpr``: the vector that ranks a user's items best above others, by Newton's method.

    It is the least of ``mean(log(1 + exp(other - own))) + user_regularization / 2 * |x|²`` over all pairs of an own and
    another item's score: the loss that training descends, which for fixed items is convex. Users of the training are
    found anew too; with a stronger regularisation than that of training they rank better (``docs/recsys.md``).

    Parameters
    ----------
    item_factors
        Shape (items, factors), the bias last.
    others
        Vectors of items that stand for those a user did not have.
    """
    import numpy as np

    ridge = np.float32(hyper["user_regularization"])
    free = item_factors.shape[1] - 1
    spread = others[:, :free]

    def fold(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
        vector = np.zeros(free + 1, np.float32)
        vector[free] = 1
        count = np.float32(max(1, len(items) * len(others)))
        for _ in range(NEWTON_STEPS if len(items) else 0):
            gradient, curvature = ridge * vector[:free], ridge * np.eye(free, dtype=np.float32)
            theirs = others @ vector
            for start in range(0, len(items), KNOWN_ROWS):
                rows = item_factors[items[start : start + KNOWN_ROWS]]
                own = rows[:, :free]
                wrong = 0.5 - 0.5 * np.tanh(0.5 * ((rows @ vector)[:, None] - theirs))
                doubt = wrong * (1 - wrong) / count
                wrong /= count
                gradient += wrong.sum(0) @ spread - wrong.sum(1) @ own
                mixed = own.T @ (doubt @ spread)
                curvature += (own.T * doubt.sum(1)) @ own + (spread.T * doubt.sum(0)) @ spread - mixed - mixed.T
            vector[:free] -= np.linalg.solve(curvature, gradient)
        return vector

    return Encoder(fold)


def _lengths(item_factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lengths of the vectors, each of which is divided by its own in place."""
    import numpy as np

    lengths: NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", item_factors, item_factors))
    np.maximum(lengths, SHORTEST, out=lengths)
    item_factors /= lengths[:, None]
    return lengths


def descent(item_factors: NDArray[np.float32], hyper: Mapping[str, Any]) -> Encoder:
    """Users that had vectors of their own: down the loss from the mean direction of the items.

    A user's vector was never more than what training had found for its items so far. Found anew for the finished items
    it ranks better (``docs/recsys.md``), and nothing has to be kept of anybody.

    Parameters
    ----------
    item_factors
        Shape (items, factors), and a last column where the recipe has a ``prior``. Each row without that is divided by
        its length, in place.
    """
    import numpy as np

    prior = item_factors[:, -1] if hyper.get("prior") else None
    vectors = item_factors if prior is None else item_factors[:, :-1]
    _lengths(vectors)
    if prior is None:
        chosen, base = _drawn(np.zeros(len(vectors)))
    else:
        # The popular ones are most of the softmax: drawn more often, each stands for fewer.
        chosen, base = _drawn(COMPARED_POPULARITY / (hyper["prior"] * hyper["temperature"]) * prior.astype(np.float64))
        base += prior[chosen] / np.float32(hyper["temperature"])
    others = vectors[chosen]
    softmax, margin = hyper["loss"] == "softmax", np.float32(hyper["margin"])
    sharp, push = np.float32(1 / hyper["temperature"]), np.float32(hyper["negative_weight"] / len(others))

    def away(scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """How much each compared item pushes the vector away from itself."""
        if not softmax:
            return push * (scores > margin)
        shares = scores * sharp + base
        shares = np.exp(shares - shares.max())
        shares /= shares.sum()
        return shares

    def fold(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
        mean = vectors[items].sum(0) / np.float32(max(1, len(items)))
        vector = mean / max(np.linalg.norm(mean), SHORTEST)
        for step in range(DESCENTS):
            gradient = away(others @ vector) @ others - mean
            gradient -= (gradient @ vector) * vector  # along the sphere
            rate = FIRST_DESCENT * (1 - step / DESCENTS) / max(np.linalg.norm(gradient), SHORTEST)
            vector = vector - np.float32(rate) * gradient
            vector /= max(np.linalg.norm(vector), SHORTEST)
        return vector if prior is None else np.append(vector, np.float32(1))

    return Encoder(fold)


def _drawn(logarithms: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """``COMPARED`` of the items without repetition, in order, by the logarithms of their weights; and the logarithm of
    how many each then stands for.

    The smallest of exponential numbers divided by the weights (Efraimidis and Spirakis 2006); an item is drawn if its
    own is below the first that is not, given which that has a known probability (Duffield, Lund and Thorup 2007).
    """
    import numpy as np

    size = len(logarithms)
    if size <= COMPARED:
        return np.arange(size), np.zeros(size, np.float32)
    keys = np.log(np.random.default_rng(0).exponential(size=size)) - logarithms
    order = np.argsort(keys)
    chosen = np.sort(order[:COMPARED])
    probability = -np.expm1(-np.exp(logarithms[chosen] + keys[order[COMPARED]]))
    return chosen, -np.log(probability).astype(np.float32)


def of_kind(
    kind: str, item_factors: NDArray[np.float32], hyper: Mapping[str, Any], *, others: NDArray[np.int32] | None = None
) -> Encoder:
    """For a model of factors alone; ``others``: rows of the items that ``pairwise`` compares with."""
    if kind == "popularity":
        return constant()
    return ridge(item_factors, hyper) if others is None else pairwise(item_factors, item_factors[others], hyper)


def embedding(
    item_factors: NDArray[np.float32], taste: NDArray[np.float32] | None, hyper: Mapping[str, Any]
) -> Encoder:
    """``embedding``: as its users were trained (``recipe.USERS``)."""
    if hyper.get("user", "sum") == "own":
        return descent(item_factors, hyper)
    return sums(item_factors, taste, cosine=hyper["loss"] != "bpr")


def sums(item_factors: NDArray[np.float32], taste: NDArray[np.float32] | None, *, cosine: bool) -> Encoder:
    """The sum of the items' vectors, over the root of their number or, for cosines, over its length.

    Parameters
    ----------
    item_factors
        Shape (items, factors). For cosines each is divided by its length, in place.
    taste
        The items' vectors as parts of users; ``None``: the same ones.
    """
    import numpy as np

    lengths = _lengths(item_factors) if cosine else np.ones(len(item_factors), np.float32)

    def fold(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
        total = lengths[items] @ item_factors[items] if taste is None else taste[items].sum(0)
        size = np.linalg.norm(total) if cosine else len(items) ** 0.5
        vector: NDArray[np.float32] = total / np.float32(max(size, SHORTEST))
        return vector

    def parts(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float64]:
        rows = item_factors[items] * lengths[items, None] if taste is None else taste[items]
        rows = rows.astype(np.float64)
        size = np.linalg.norm(rows.sum(0)) if cosine else len(items) ** 0.5
        return rows / max(size, SHORTEST)

    return Encoder(fold, parts)
