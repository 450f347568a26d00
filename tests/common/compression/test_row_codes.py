"""Codes with bits shared out among columns: bytes, levels, and that more bits are nearer."""

import numpy as np
import pytest

from common.compression import row_codes
from common.compression.row_codes import RowCodes

ROWS, WIDTH = 3000, 13
DEVIATIONS = (0.7 ** np.arange(WIDTH)).astype(np.float32)


def matrix(seed: int = 0) -> np.ndarray:
    """Normal numbers with falling deviations, and rows of very different lengths; one is zeros."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((ROWS, WIDTH)) * DEVIATIONS * np.exp(0.8 * random.standard_normal((ROWS, 1)))
    rows[7] = 0
    return rows.astype(np.float32)


@pytest.mark.parametrize("bits", range(1, 9))
def test_errors_are_those_of_the_levels(bits: int) -> None:
    """By a million normal numbers, against the table; Max 1960 has .3634, .1175, .03454 and .009497 for 1 to 4."""
    numbers = np.random.default_rng(0).standard_normal(1_000_000)
    levels = row_codes.levels(bits)
    nearest = levels[np.searchsorted(row_codes.bounds(bits), numbers)]
    assert len(levels) == 1 << bits and (np.diff(levels) > 0).all()
    assert ((numbers - nearest) ** 2).mean() == pytest.approx(row_codes.ERRORS[bits], rel=0.03)
    assert (
        np.abs(numbers[:2000, None] - levels).argmin(1) == np.searchsorted(row_codes.bounds(bits), numbers[:2000])
    ).all()


def test_bits_go_where_they_lower_the_error_most() -> None:
    """Against all ways of sharing 9 bits among four columns."""
    weights = np.array([5.0, 2.0, 0.3, 0.001])
    errors = np.array(row_codes.ERRORS)
    ways = [(a, b, c, d) for a in range(9) for b in range(9) for c in range(9) for d in range(9) if a + b + c + d == 9]
    best = min(ways, key=lambda way: float(weights @ errors[list(way)]))
    assert tuple(row_codes.shared_bits(weights, 9)) == best
    assert row_codes.shared_bits(weights, 100).tolist() == [8] * 4
    assert row_codes.shared_bits(np.zeros(2), 3).sum() <= 3


@pytest.mark.parametrize("bits", [(8, 5, 4, 3, 3, 2, 2, 1, 1, 1, 0, 0, 1), (0, 0, 1, 7, 6, 0, 3, 3, 0, 0, 0, 0, 2)])
def test_rows_take_their_bytes_and_come_back(bits: tuple[int, ...]) -> None:
    rows, each = matrix(), np.array(bits, np.uint8)
    codes = RowCodes.of(rows, each)
    assert codes.packed.shape == (ROWS, -(-sum(bits) // 8)) and codes.scales.dtype == np.uint8
    assert row_codes.row_bytes(sum(bits)) == codes.packed.shape[1] + 1
    decoded = codes.decode(slice(0, ROWS))
    some = np.array([5, 2999, 7, 5])
    assert (codes.decode(some) == decoded[some]).all() and not decoded[7].any()
    assert not decoded[:, each == 0].any()
    # Each number is a level of its column times the row's scale: the levels that were packed.
    found, scales = row_codes.nearest(rows, each, codes.deviations, np.ones(WIDTH, np.float32))
    for column, count in enumerate(bits):
        expected = row_codes.levels(count)[found[:, column]] * codes.deviations[column] * scales
        np.testing.assert_allclose(decoded[:, column], expected, rtol=0.015, atol=1e-6)


def test_more_bits_are_nearer_and_all_of_them_nearly_exact() -> None:
    rows = matrix()
    sizes, last = (rows**2).sum(), np.inf
    for total in (8, 16, 32, 64, 8 * WIDTH):
        bits = row_codes.shared_bits(DEVIATIONS.astype(np.float64) ** 2, total)
        error = float(((RowCodes.of(rows, bits).decode(slice(0, ROWS)) - rows) ** 2).sum() / sizes)
        assert error < last
        last = error
    assert last < 1e-3
    even = np.full(WIDTH, 2, np.uint8)
    shared = row_codes.shared_bits(DEVIATIONS.astype(np.float64) ** 2, 2 * WIDTH)
    errors = [float(((RowCodes.of(rows, bits).decode(slice(0, ROWS)) - rows) ** 2).sum()) for bits in (even, shared)]
    assert errors[1] < 0.7 * errors[0]


def test_a_scale_of_the_least_weighted_error() -> None:
    rows, bits = matrix(1)[:50], np.full(WIDTH, 1, np.uint8)
    weights = np.linspace(1, 3, WIDTH).astype(np.float32)
    deviations = row_codes.column_deviations(rows)
    found, scales = row_codes.nearest(rows, bits, deviations, weights)
    values = row_codes.levels(1)[found] * deviations
    for row in (0, 20, 49):
        errors = [
            (weights * (rows[row] - scale * values[row]) ** 2).sum()
            for scale in scales[row] * np.array([0.99, 1, 1.01])
        ]
        assert errors[1] == min(errors)


def test_zeros_stay_zeros() -> None:
    codes = RowCodes.of(np.zeros((4, 3), np.float32), np.array([2, 1, 1], np.uint8))
    assert not codes.decode(np.arange(4)).any()
    assert np.isfinite(codes.deviations).all() and len(codes) == 4
