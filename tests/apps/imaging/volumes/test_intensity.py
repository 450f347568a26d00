"""Intensity operations in a stream, against the whole volume in memory."""

import numpy as np
import pytest

from apps.imaging.volumes.intensity import apply, check_operations, resolve
from tests.messages import refused

OPERATIONS = [
    ([{"op": "zscore"}], lambda v: (v - v.mean()) / v.std()),
    (
        [{"op": "zscore", "nonzero": True}],
        lambda v: np.where(v == 0, 0, (v - v[v != 0].mean()) / v[v != 0].std()),
    ),
    (
        [{"op": "clip", "low": 0, "high": 500}, {"op": "scale", "low": 0, "high": 500}],
        lambda v: np.clip(v, 0, 500) / 500,
    ),
    (
        [{"op": "clip", "low": 0, "high": 500}, {"op": "zscore"}],
        lambda v: (np.clip(v, 0, 500) - np.clip(v, 0, 500).mean()) / np.clip(v, 0, 500).std(),
    ),
]


@pytest.mark.parametrize(("operations", "expected"), OPERATIONS)
def test_intensity_streams_give_the_whole_volumes_numbers(operations, expected) -> None:  # type: ignore[no-untyped-def]
    values = np.random.default_rng(5).integers(-100, 1000, (30, 20, 10)).astype(np.float64)
    values[:5] = 0
    resolved = resolve(operations, lambda: (values[start : start + 7] for start in range(0, 30, 7)))
    np.testing.assert_allclose(apply(resolved, values.astype(np.float32)), expected(values), atol=2e-5)


def test_percentiles_are_within_a_bin() -> None:
    values = np.random.default_rng(6).gamma(2, 100, (40, 30, 20)).astype(np.float32)
    (clip,) = resolve([{"op": "percentiles", "low": 0.5, "high": 99.5}], lambda: np.array_split(values, 7))
    expected = np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose([clip["low"], clip["high"]], expected, atol=2 * np.ptp(values) / 65536)


def test_intensity_survives_constants_and_broken_voxels() -> None:
    flat = resolve([{"op": "zscore"}], lambda: [np.full((4, 4), 7.0)])
    assert (apply(flat, np.full((4, 4), 7.0, np.float32)) == 0).all()
    assert np.isfinite(apply((), np.array([np.nan, np.inf, -np.inf, 1], np.float32))).all()


@pytest.mark.parametrize(
    "bad", [{"op": "exec"}, {"op": "clip", "low": 1}, {"op": "zscore", "x": 1}, {"op": "scale", "low": 2, "high": 1}]
)
def test_unknown_operations_are_refused(bad: dict[str, object]) -> None:
    with refused(ValueError, bad["op"]):
        check_operations([bad])
