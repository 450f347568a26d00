"""Product and residual codes: groups, entries, bytes, and what comes back."""

import numpy as np
import pytest
import scipy.cluster.vq

from common.compression import book_layout, books
from common.compression.book_codes import BookCodes
from common.compression.books import Books

ROWS, WIDTH = 3000, 12
DEVIATIONS = (0.7 ** np.arange(WIDTH)).astype(np.float32)
WEIGHTS = np.linspace(3, 1, WIDTH)


def matrix(seed: int = 0) -> np.ndarray:
    """Normal numbers with falling deviations, and rows of very different lengths; one is zeros."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((ROWS, WIDTH)) * DEVIATIONS * np.exp(0.8 * random.standard_normal((ROWS, 1)))
    rows[7] = 0
    return rows.astype(np.float32)


def encoded(rows: np.ndarray, size: int, layers: int) -> tuple[BookCodes, book_layout.Layout]:
    """The codes of rows with the columns of the layout, and the layout."""
    layout = book_layout.layout((rows**2).mean(0) * WEIGHTS, size=size, rows=len(rows), layers=layers)
    assert layout is not None
    own = WEIGHTS[layout.columns]
    return BookCodes.of(rows[:, layout.columns], own, Books.of(rows[:, layout.columns], own, layout)), layout


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("size", [3, 6, 9])
def test_rows_take_their_bytes_and_come_back(size: int, layers: int) -> None:
    """Each group of a decoded row is a sum of entries times the row's scale, and no other entry is nearer."""
    rows = matrix()
    codes, layout = encoded(rows, size, layers)
    assert codes.stored_bytes <= size * ROWS and layout.bytes_of(ROWS) in (size, size - 1)
    assert len(codes.packed) == codes.expected_bytes
    decoded, some = codes.decode(slice(0, ROWS)), np.array([5, 2999, 7, 5, 256, 255, 257])
    assert (codes.decode(some) == decoded[some]).all() and not decoded[7].any()
    out = np.empty((650, codes.width), np.float32)
    codes.decode_places(0, slice(250, 900), slice(250, 900), out)
    assert (out == decoded[250:900]).all() and [order[0] for order in codes.stored_order()] == [slice(0, ROWS)]
    scales = codes.books.scale_values(codes.scales)
    rows, own = rows[:, layout.columns], WEIGHTS[layout.columns]
    for start, stop in layout.spans:
        entries = codes.books.entries[:, :, start:stop].astype(np.float64)
        sums = entries[0] if layers == 1 else (entries[0][:, None] + entries[1]).reshape(-1, stop - start)
        for row in (0, 20, 2999):
            reached = sums * scales[row]
            place = np.abs(reached - decoded[row, start:stop]).sum(1).argmin()
            np.testing.assert_allclose(reached[place], decoded[row, start:stop], rtol=1e-4, atol=1e-6)
            errors = ((reached - rows[row, start:stop]) ** 2) @ own[start:stop]
            if layers == 1:
                assert errors[place] <= errors.min() * (1 + 1e-4) + 1e-12


def test_more_bytes_and_more_bits_are_nearer() -> None:
    rows = matrix()

    def error(size: int, layers: int) -> float:
        codes, layout = encoded(rows, size, layers)
        wrong = np.zeros(rows.shape)
        wrong[:] = rows
        wrong[:, layout.columns] -= codes.decode(slice(0, ROWS))
        return float((wrong**2 @ WEIGHTS).sum() / (rows**2 @ WEIGHTS).sum())

    for layers in (1, 2):
        found = [error(size, layers) for size in (3, 5, 8, 12)]
        assert found == sorted(found, reverse=True) and found[-1] < 0.03 < found[0] < 0.6


def test_entries_are_those_of_another_k_means() -> None:
    """The squared error of one group's entries, against SciPy's Lloyd from the best of several starts."""
    rows = np.random.default_rng(1).standard_normal((4000, 2)).astype(np.float32)
    layout = book_layout.Layout(np.arange(2), (0,), 4, 1)
    made = Books.of(rows, np.ones(2), layout, alike=True)
    unit = rows / books.row_scales(rows, np.ones(2))[:, None]
    own = (
        ((unit - made.entries[0].astype(np.float32)[books._nearest(unit, made.entries[0].astype(np.float32))]) ** 2)
        .sum(1)
        .mean()
    )
    theirs = scipy.cluster.vq.kmeans(unit.astype(np.float64), 16, iter=5, rng=np.random.default_rng(0))[0]
    best = ((unit[:, None] - theirs) ** 2).sum(2).min(1).mean()
    assert own < 1.3 * best


@pytest.mark.parametrize("last", [False, True])
def test_groups_are_worth_as_many_bits(last: bool) -> None:
    variances = 4.0 ** -np.arange(16)
    layout = book_layout.layout(variances, size=6, rows=10**6, layers=1, last=last)
    assert layout is not None and layout.bits == 8
    worth = book_layout.worths(variances, len(layout.starts) * 8)
    assert worth.sum() == pytest.approx(32) and len(layout.starts) == 4
    each = [worth[layout.columns[start:stop]].sum() for start, stop in layout.spans]
    assert max(each) - min(each) < 1.5
    assert len(set(layout.columns)) == len(layout.columns)
    assert (layout.columns[-1] == 15) == last and (15 in layout.columns) == last


def test_entries_of_few_rows_have_fewer_bits_and_the_smallest_is_said() -> None:
    variances = np.ones(64)
    bits = [book_layout.layout(variances, size=16, rows=rows, layers=1).bits for rows in (10**6, 5000, 500)]  # type: ignore[union-attr]
    assert bits == sorted(bits, reverse=True) and bits[0] == 8 and bits[-1] < 5
    for rows, layers in ((1, 1), (1, 2), (30, 1), (10**5, 2)):
        smallest = book_layout.smallest_bytes(64, rows=rows, layers=layers)
        found = book_layout.layout(variances, size=smallest, rows=rows, layers=layers)
        assert found is not None and found.bytes_of(rows) <= smallest
        assert book_layout.layout(np.zeros(64), size=smallest, rows=rows, layers=layers) is not None


def test_rows_are_taken_and_added() -> None:
    rows = matrix()
    codes, layout = encoded(rows, 6, 1)
    kept = np.flatnonzero(np.arange(ROWS) % 3)
    fewer = codes.taken(kept)
    assert (fewer.decode(slice(0, len(kept))) == codes.decode(kept)).all()
    more = fewer.with_rows(rows[::3][:, layout.columns])
    assert (more.decode(np.arange(len(kept))) == codes.decode(kept)).all() and len(more) == ROWS
    added, whole = more.decode(slice(len(kept), ROWS)), rows[::3][:, layout.columns]
    assert np.linalg.norm(added - whole) <= 1.1 * np.linalg.norm(codes.decode(np.arange(0, ROWS, 3)) - whole)


def test_rows_that_are_all_zeros_or_one() -> None:
    for rows in (np.zeros((4, 3), np.float32), np.ones((1, 3), np.float32)):
        layout = book_layout.layout((rows**2).mean(0), size=40, rows=len(rows), layers=1)
        assert layout is not None
        own = np.ones(len(layout.columns))
        codes = BookCodes.of(rows[:, layout.columns], own, Books.of(rows[:, layout.columns], own, layout))
        found = codes.decode(np.arange(len(rows)))
        assert np.isfinite(found).all() and np.allclose(found, rows[:, layout.columns], rtol=0.05)
