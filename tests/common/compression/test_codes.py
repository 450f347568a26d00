"""Codes of rows: exact packing, bounded errors for rows of any kind, the same bits on one thread and on two."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from common.compression import codes
from common.compression.codes import STEPS, Codes

MOST = {8: 0.008, 4: 0.07, 2: 0.27, 1: 0.54}
"""Largest squared error of a row relative to its square; that of normal numbers is 0.0001, 0.012, 0.119 and 0.363. The
largest of 9,000 rotated rows was 0.005, 0.048, 0.210 and 0.478."""


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from(sorted(STEPS)), rows=st.integers(0, 5), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_packing_is_exact(bits: int, rows: int, width: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).integers(0, 1 << bits, (rows, width)).astype(np.uint8)
    packed = codes.pack(drawn, bits)
    assert packed.shape == (rows, -(-width * bits // 8)) and packed.dtype == np.uint8
    np.testing.assert_array_equal(codes.unpack(packed, width, bits), drawn)


@settings(max_examples=24, deadline=None)
@given(
    bits=st.sampled_from(sorted(STEPS)),
    kind=st.sampled_from(["normal", "one number", "falling", "equal"]),
    length=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 10**6),
)
def test_the_error_is_that_of_normal_numbers_whatever_the_row(bits: int, kind: str, length: float, seed: int) -> None:
    random, width = np.random.default_rng(seed), 128
    row = {
        "normal": random.standard_normal(width),
        "one number": np.eye(width)[seed % width],
        "falling": 0.8 ** np.arange(width),
        "equal": np.ones(width),
    }[kind]
    rows = (np.stack([row, np.zeros(width), row / 1e6]) * length).astype(np.float32)
    with threadpool_limits(1, "blas"):
        coded = Codes.of(rows, bits, seed=seed)
        decoded, turned = coded.decode(slice(None)), rows @ codes.rotation(width, seed)
    for number in (0, 2):
        error = np.sum((decoded[number] - turned[number]) ** 2) / np.sum(turned[number].astype(np.float64) ** 2)
        assert error <= MOST[bits]
    assert not decoded[1].any()


@pytest.mark.parametrize(("bits", "stored"), [(8, 102), (4, 52), (2, 27), (1, 15)])
def test_its_bytes_and_its_bits_on_any_number_of_threads(bits: int, stored: int) -> None:
    """Blocks do not show, rows are found by range or by number, and the columns' weights are applied first."""
    rows = np.random.default_rng(1).standard_normal((codes.BLOCK_ROWS + 300, 100)).astype(np.float32)
    weights = np.linspace(2, 0, 100, dtype=np.float32)
    made = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            made.append(Codes.of(rows, bits, seed=5, weights=weights))
    assert made[0].packed.tobytes() == made[1].packed.tobytes()
    assert made[0].scales.tobytes() == made[1].scales.tobytes() and made[0].unit == made[1].unit
    coded = made[0]
    assert (coded.packed.nbytes + coded.scales.nbytes) / len(coded) == stored == codes.row_bytes(100, bits)
    some = np.array([0, codes.BLOCK_ROWS, codes.BLOCK_ROWS + 299, 7])
    np.testing.assert_array_equal(coded.decode(some), coded.decode(slice(None))[some])
    np.testing.assert_array_equal(coded.decode(slice(3, 9), coded.workspace()), coded.decode(slice(None))[3:9])
    products, exact = coded.decode(slice(0, 50)), rows[:50] * weights
    correlation = np.corrcoef((products @ products.T).ravel(), (exact @ exact.T).ravel())[0, 1]
    assert correlation > {8: 0.9999, 4: 0.99, 2: 0.94, 1: 0.85}[bits]
