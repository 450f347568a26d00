"""Losses by which ``new_items`` solves the vector of one item, all others fixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apps.recsys.models.embedding.user_encoders import FIRST_STEP
from apps.recsys.models.scan.rows import LEAST_LENGTH

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST_STEPS, MOST_STEPS, LONGEST_STEP = 8, 100, 0.5
"""Steps that follow the gradient for an item of ``bpr``, and their largest length."""
SPHERE_STEPS = 20
"""Steps along the sphere for an item of ``embedding``; their angles shrink linearly."""


class PairLoss:
    """The loss of ``bpr`` for the vector of an item, followed along its gradient as far as a training would.

    Parameters
    ----------
    negatives
        Vectors of the items that users are compared by, shape (m, factors).
    others
        Vectors of the users of other interactions, shape (s, factors).
    above
        Scores of the items that these had, shape (s,).
    hyper
        Hyper-parameters of the model.
    """

    def __init__(
        self,
        negatives: NDArray[np.float32],
        others: NDArray[np.float32],
        above: NDArray[np.float32],
        hyper: Mapping[str, Any],
    ) -> None:
        self._negatives, self._others, self._above = negatives, others, above
        self._ridge = float(hyper["regularization"])
        self._rate = float(hyper["learning_rate"]) * int(hyper["iterations"])

    def solve(self, users: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        """The vector of an item that ``count`` users had; vectors of some of them have shape (n, factors).

        A training makes ``count`` steps of the learning rate in each epoch, and as many where the item is the negative.
        Their expectation is followed here in fewer, longer steps.
        """
        import numpy as np

        size, vector = max(1, len(self._others)), np.zeros(users.shape[1], np.float32)
        below = users @ self._negatives.T
        way = self._rate * count
        steps = min(MOST_STEPS, max(LEAST_STEPS, round(way / LONGEST_STEP)))
        for _ in range(steps):
            pushed = _sigmoid(below - (users @ vector)[:, None]).mean(1) / len(users)
            held = _sigmoid(self._others @ vector - self._above) / size
            gradient = 2 * self._ridge * vector - pushed @ users + held @ self._others
            vector = vector - np.float32(min(way / steps, LONGEST_STEP)) * gradient
        return vector


class CosineLoss:
    """The loss of an ``embedding`` for the vector of an item, minimised by steps on the sphere.

    Users who had the item pull its vector, and those of other interactions push it, as much as their loss would grow.

    Parameters
    ----------
    items
        Vectors of the model's items, with a column for the prior if there is one: shape (items, width).
    prior
        Priors of all items, new ones too; ``None``: there are none.
    hyper
        Hyper-parameters of the model.
    others
        Vectors of the users of other interactions, shape (s, width).
    interactions
        Number of interactions that they stand for.
    """

    def __init__(
        self,
        items: NDArray[np.float32],
        prior: NDArray[np.float32] | None,
        hyper: Mapping[str, Any],
        others: NDArray[np.float32],
        interactions: int,
    ) -> None:
        import numpy as np

        width = items.shape[1] - (prior is not None)
        lengths = np.sqrt(np.einsum("ij,ij->i", items[:, :width], items[:, :width]))
        self._length = np.float32(np.median(lengths))
        self._others, self._prior, self._hyper = others[:, :width], prior, hyper
        self._interactions, self._items = interactions, len(items)
        self._sharpness = np.float32(1 / hyper["temperature"])
        self._log_sums = np.zeros(len(others), np.float32)
        """Logarithm of each other user's sum over the items, as the softmax has it."""
        if hyper["loss"] == "softmax":
            unit = items[:, :width] / np.maximum(lengths, LEAST_LENGTH)[:, None]
            for row, other in enumerate(others):
                scores = unit @ other[:width]
                if prior is not None:
                    scores += prior[: len(items)]
                self._log_sums[row] = np.logaddexp.reduce(scores * self._sharpness)

    def solve(self, users: NDArray[np.float32], item: int, count: int) -> NDArray[np.float32]:
        """The vector of the item in the row ``item``, which ``count`` users had; vectors of some: (n, factors)."""
        import numpy as np

        mean: NDArray[np.float32] = users.mean(0)
        if not mean.any():
            return mean  # none of them has an item of the model
        vector: NDArray[np.float32] = mean - self._others.mean(0) if len(self._others) else mean.copy()
        vector /= max(float(np.linalg.norm(vector)), LEAST_LENGTH)
        more = np.float32(self._interactions / (count * max(1, len(self._others))))
        # Scores of the loss ``bpr`` are no cosines; there the first direction is taken as it is.
        for step in range(SPHERE_STEPS if self._hyper["loss"] != "bpr" else 0):
            pull = mean - more * self._pushes(vector, item) @ self._others
            pull -= (pull @ vector) * vector  # along the sphere
            length = max(float(np.linalg.norm(pull)), LEAST_LENGTH)
            rate = FIRST_STEP * (1 - step / SPHERE_STEPS) / length
            vector += np.float32(rate) * pull
            vector /= max(float(np.linalg.norm(vector)), LEAST_LENGTH)
        scaled: NDArray[np.float32] = self._length * vector
        return scaled

    def _pushes(self, vector: NDArray[np.float32], item: int) -> NDArray[np.float32]:
        """How much each other user pushes the item away: the loss's derivative by its score."""
        import numpy as np

        scores = self._others @ vector
        if self._hyper["loss"] == "softmax":
            scores *= self._sharpness
            if self._prior is not None:
                scores += self._prior[item] * self._sharpness
            return _sigmoid(scores - self._log_sums)
        share = np.float32(self._hyper["negative_weight"] / self._items)
        pushed: NDArray[np.float32] = share * (scores > np.float32(self._hyper["margin"]))
        return pushed


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    value: NDArray[np.float32] = 0.5 + 0.5 * np.tanh(0.5 * x)
    return value
