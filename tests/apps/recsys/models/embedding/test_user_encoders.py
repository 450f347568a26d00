"""User vectors of unusual histories: none, such that cancel, such that are handled in many parts."""

from typing import Any

import numpy as np
import pytest

from apps.recsys.models import bpr
from apps.recsys.models.embedding import user_encoders
from apps.recsys.models.embedding.embedding_config import HYPER

ITEMS, FACTORS = 60, 8


def vectors(seed: int = 0) -> np.ndarray:
    """Items' vectors."""
    return np.random.default_rng(seed).normal(0, 0.5, (ITEMS, FACTORS)).astype(np.float32)


def ones(count: int) -> np.ndarray:
    """The values of a history."""
    return np.ones(count, np.float32)


NONE = np.zeros(0, np.int64)


def test_without_a_history_only_what_all_users_share_is_left() -> None:
    assert user_encoders.constant()(NONE, ones(0)).tolist() == [1]
    factors = vectors()
    newton = user_encoders.fold_in_newton(factors, factors[:20], bpr.HYPER)
    assert newton(NONE, ones(0)).tolist() == [0] * (FACTORS - 1) + [1]  # scores are the items' biases
    gradient = user_encoders.fold_in_gradient(vectors(), {**HYPER, "loss": "softmax"})
    assert np.isfinite(gradient(NONE, ones(0))).all()


@pytest.mark.parametrize("loss", ["softmax", "ccl"])
def test_items_that_cancel_give_a_vector_all_the_same(loss: str) -> None:
    factors = vectors()
    factors[1] = -factors[0]
    factors[2] = 0
    encoder = user_encoders.fold_in_gradient(factors, {**HYPER, "prior": 0.0, "loss": loss})
    assert np.isfinite(factors).all() and not factors[2].any()
    for items in ([0, 1], [2]):
        found = encoder(np.array(items), ones(len(items)))
        assert np.isfinite(found).all() and np.linalg.norm(found) <= 1 + 1e-5


def test_a_long_history_in_parts_gives_what_it_gives_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    factors: Any = vectors(1)
    items = np.arange(40)
    encoder = user_encoders.fold_in_newton(factors, factors[40:], bpr.HYPER)
    whole = encoder(items, ones(40))
    for rows in (1, 7, 39):
        monkeypatch.setattr(user_encoders, "POSITIVE_ROWS", rows)
        np.testing.assert_allclose(encoder(items, ones(40)), whole, rtol=1e-4, atol=1e-6)
