"""Codes with bits shared out among columns: bytes, levels, and that more bits are nearer."""

import numpy as np
import pytest

from common.compression import row_grid, row_levels
from common.compression.row_codes import RowCodes
from common.compression.row_grid import Grid

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
    levels = row_levels.levels(bits)
    nearest = levels[np.searchsorted(row_levels.bounds(bits), numbers)]
    assert len(levels) == 1 << bits and (np.diff(levels) > 0).all()
    assert ((numbers - nearest) ** 2).mean() == pytest.approx(row_levels.ERRORS[bits], rel=0.03)
    assert (
        np.abs(numbers[:2000, None] - levels).argmin(1) == np.searchsorted(row_levels.bounds(bits), numbers[:2000])
    ).all()


def test_bits_go_where_they_lower_the_error_most() -> None:
    """Against all ways of sharing 16 bits among four columns."""
    weights = np.array([5.0, 2.0, 0.3, 0.001])
    errors = np.array(row_levels.ERRORS)
    ways = [(a, b, c, d) for a in range(9) for b in range(9) for c in range(9) for d in range(9) if a + b + c + d == 16]
    best = min(ways, key=lambda way: float(weights @ errors[list(way)]))
    assert tuple(row_levels.shared_bits(weights, 2)) == best
    assert row_levels.shared_bits(weights, 100).tolist() == [8] * 4
    assert not row_levels.shared_bits(np.zeros(2), 3).any()


def test_longer_rows_get_more_bytes() -> None:
    """Against all ways of sharing bytes among rows of 2 columns in two classes: whole bytes, filled."""
    weights, counts = np.array([[30.0, 8.0], [1.0, 0.5]]), np.array([10, 30])
    errors = np.array(row_levels.ERRORS)

    def best_of(size: int, own: np.ndarray) -> float:
        return min(float(own @ errors[[a, 8 * size - a]]) for a in range(9) if 0 <= 8 * size - a <= 8)

    ways = [(a, b) for a in range(3) for b in range(3) if 10 * a + 30 * b <= 50]
    best = min(ways, key=lambda way: sum(n * best_of(size, w) for n, size, w in zip(counts, way, weights, strict=True)))
    assert best == (2, 1)
    assert (-(-row_levels.shared_bits(weights, 50, counts).sum(1, dtype=int) // 8)).tolist() == list(best)
    # A second byte of the many gains more a row and does not fit; what is left goes to the few.
    many = row_levels.shared_bits(np.array([[4.0, 4.0], [1.0, 1.0]]), 150, np.array([100, 10]))
    assert many.tolist() == [[4, 4], [8, 8]]


def grid_of(rows: np.ndarray, bits: np.ndarray) -> tuple[Grid, np.ndarray]:
    """Levels with bits of shape (classes, width), and classes of the rows by their lengths, as many in each."""
    deviations, each = row_grid.column_deviations(rows), np.atleast_2d(bits)
    order = np.argsort(np.argsort(row_grid.row_scales(rows, deviations)))
    return Grid.of(each, deviations), (order * len(each) // len(rows)).astype(np.uint8)


ONE, TWO = (8, 5, 4, 3, 3, 2, 2, 1, 1, 1, 0, 0, 1), (0, 0, 1, 7, 6, 0, 3, 3, 0, 0, 0, 0, 2)


@pytest.mark.parametrize("bits", [(ONE,), (TWO,), (TWO, ONE), ((0,) * WIDTH, TWO, ONE)])
def test_rows_take_their_bytes_and_come_back(bits: tuple[tuple[int, ...], ...]) -> None:
    rows, each = matrix(), np.array(bits, np.uint8)
    grid, kinds = grid_of(rows, each)
    codes = RowCodes.of(rows, grid, None, kinds)
    grid = codes.grid
    assert (grid.classes(codes.scales) == kinds).all() and codes.scales.dtype == np.uint8
    sizes = np.array([-(-sum(own) // 8) for own in bits])
    assert len(codes.packed) == codes.expected_bytes == sizes[kinds].sum() == codes.stored_bytes - ROWS
    decoded = codes.decode(slice(0, ROWS))
    some = np.array([5, 2999, 7, 5, 256, 255, 257])
    assert (codes.decode(some) == decoded[some]).all() and not decoded[7].any()
    assert (codes.decode(slice(250, 900)) == decoded[250:900]).all()
    # Each number is a level of its column times the row's scale: the levels that were packed.
    found, scales = row_grid.nearest(rows, grid, np.ones(WIDTH, np.float32), kinds)
    found, scales = grid.settled(rows, scales, kinds)
    for column in range(WIDTH):
        count = each[kinds, column]
        wanted = np.array([row_levels.levels(int(b))[f] for b, f in zip(count, found[:, column], strict=True)])
        expected = wanted * grid.deviations[column] * scales
        np.testing.assert_allclose(decoded[:, column], expected, rtol=1e-5, atol=1e-6)
    values = grid.decoded(found, scales, kinds)
    np.testing.assert_allclose(values, decoded, rtol=1e-5, atol=1e-6)
    seen = np.zeros(ROWS, int)
    for items, number, places in codes.stored_order():
        out = np.empty((places.stop - places.start, WIDTH), np.float32)
        codes.decode_places(number, items, places, out)
        assert (out == decoded[items]).all()
        seen[items] += 1
    assert (seen == 1).all()


def test_rows_are_taken_and_added() -> None:
    rows = matrix()
    grid, kinds = grid_of(rows, np.array([TWO, ONE], np.uint8))
    codes = RowCodes.of(rows, grid, None, kinds)
    kept = np.flatnonzero(np.arange(ROWS) % 3)
    fewer = codes.taken(kept)
    assert (fewer.decode(slice(0, len(kept))) == codes.decode(kept)).all()
    more = fewer.with_rows(rows[::3])
    assert (more.decode(np.arange(len(kept))) == codes.decode(kept)).all()
    added, same = more.decode(slice(len(kept), ROWS)), codes.decode(np.arange(0, ROWS, 3))
    # A class is chosen by the length of a row, so that of a few it is the next one.
    assert (added == same).all(1).mean() > 0.8
    assert np.linalg.norm(added - rows[::3]) < 1.1 * np.linalg.norm(same - rows[::3])
    assert len(more) == ROWS and more.expected_bytes == len(more.packed)


@pytest.mark.parametrize("classes", [1, 2, 9])
def test_scales_are_rounded_within_their_class(classes: int) -> None:
    grid, kinds = Grid.of(np.ones((classes, 3), np.uint8), np.ones(3, np.float32)), np.arange(900) % classes
    scales = (np.exp2(np.random.default_rng(0).uniform(-0.25, 0.5, 900)) * 4.0**kinds).astype(np.float32)
    grid = grid.fitted(scales, kinds.astype(np.uint8))
    codes = grid.scale_codes(scales, kinds.astype(np.uint8))
    assert (grid.classes(codes) == kinds).all() and codes.min() > 0
    step = {1: 24, 2: 127 / 1.5, 9: 27 / 1.5}[classes]
    assert abs(np.log2(grid.scale_values(codes) / scales)).max() < 0.55 / step
    beyond = grid.scale_codes(scales * np.float32(1e-9), kinds.astype(np.uint8))
    assert (grid.classes(beyond) == kinds).all()


def test_more_bits_are_nearer_and_all_of_them_nearly_exact() -> None:
    rows = matrix()
    sizes, last = (rows**2).sum(), np.inf

    def error(bits: np.ndarray) -> float:
        return float(((RowCodes.of(rows, grid_of(rows, bits)[0]).decode(slice(0, ROWS)) - rows) ** 2).sum() / sizes)

    for total in (1, 2, 4, 8, WIDTH):
        found = error(row_levels.shared_bits(DEVIATIONS.astype(np.float64) ** 2, total))
        assert found < last
        last = found
    assert last < 1e-3
    shared = row_levels.shared_bits(DEVIATIONS.astype(np.float64) ** 2, 4)
    assert error(shared) < 0.7 * error(np.array([3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2], np.uint8))


def test_a_scale_of_the_least_weighted_error() -> None:
    rows, bits = matrix(1)[:50], np.full(WIDTH, 1, np.uint8)
    weights = np.linspace(1, 3, WIDTH).astype(np.float32)
    grid, _ = grid_of(rows, bits)
    found, scales = row_grid.nearest(rows, grid, weights, np.zeros(len(rows), np.uint8))
    values = row_levels.levels(1)[found] * grid.deviations
    for row in (0, 20, 49):
        errors = [
            (weights * (rows[row] - scale * values[row]) ** 2).sum()
            for scale in scales[row] * np.array([0.99, 1, 1.01])
        ]
        assert errors[1] == min(errors)


def test_zeros_stay_zeros() -> None:
    rows = np.zeros((4, 3), np.float32)
    codes = RowCodes.of(rows, grid_of(rows, np.array([2, 1, 1], np.uint8))[0])
    assert not codes.decode(np.arange(4)).any()
    assert np.isfinite(codes.grid.deviations).all() and len(codes) == 4
