"""Rows in few bits: what is stored, that rounding is right on average, and that what does not move stays."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.compression.row_formats import FORMATS, decode, empty, encode, rounding_thresholds

SMALL = ["int8", "int4"]


@pytest.mark.parametrize(("kind", "size"), [("full", 256), ("int8", 66), ("int4", 34)])
def test_bytes_of_a_row(kind: str, size: int) -> None:
    form = FORMATS[kind]
    codes, scales = empty(10, 64, form)
    stored = codes.nbytes + (scales.nbytes if scales is not None else 0)
    assert stored == 10 * form.bytes_per_row(64) == 10 * size


def test_odd_widths_of_half_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\b5\b.*\b4 bits"):
        empty(3, 5, FORMATS["int4"])


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(SMALL), seed=st.integers(0, 10_000), size=st.floats(1e-3, 1e3))
def test_an_error_is_less_than_one_code_where_nothing_is_clipped(kind: str, seed: int, size: float) -> None:
    torch.manual_seed(seed)
    values = (torch.rand(5, 16) - 0.5) * size  # uniform: at most 1.8 standard deviations
    codes, scales = encode(values, None, FORMATS[kind])
    assert scales is not None
    error = (decode(codes, scales, FORMATS[kind]) - values).abs()
    assert (error <= scales.float()[:, None] * 1.001).all()


@pytest.mark.parametrize("kind", SMALL)
def test_rounding_is_right_on_average(kind: str) -> None:
    torch.manual_seed(0)
    values = torch.rand(1, 8) - 0.5
    codes, scales = encode(values.expand(20_000, 8), None, FORMATS[kind])
    assert scales is not None
    mean = decode(codes, scales, FORMATS[kind]).mean(0)
    # a uniform remainder has a deviation of at most half a code; five standard errors
    assert torch.allclose(mean, values[0], atol=5 * 0.5 * float(scales[0]) / 20_000**0.5)


@pytest.mark.parametrize("kind", SMALL)
def test_thresholds_that_are_spread_evenly_keep_a_thousand_small_steps_together(kind: str) -> None:
    """Random ones would be some 15 codes away after steps of 0.3 codes; these never more than three."""
    form, ids = FORMATS[kind], torch.tensor([3, 41, 1_000_003])
    step = torch.tensor([0.3, -0.3, 0.11])[:, None]
    codes, scales = encode(torch.rand(3, 16) - 0.5, None, form)
    assert scales is not None
    moved = torch.zeros(3, 16)
    for turn in range(1000):
        up = rounding_thresholds(ids, 16, torch.tensor(turn))
        assert float(up.min()) >= 0 and float(up.max()) < 1
        before = decode(codes, scales, form)
        after, _ = encode(before + step * scales.float()[:, None], scales, form, up)
        moved += (decode(after, scales, form) - before) / scales.float()[:, None]
        assert (moved - (turn + 1) * step).abs().max() < 3


@pytest.mark.parametrize("kind", SMALL)
def test_what_does_not_move_keeps_its_code(kind: str) -> None:
    torch.manual_seed(0)
    form = FORMATS[kind]
    codes, scales = encode(torch.randn(50, 16), None, form)
    assert scales is not None
    again, same = encode(decode(codes, scales, form) * (1 + 1e-6), scales, form)
    assert torch.equal(again, codes) and torch.equal(same, scales)


@pytest.mark.parametrize("kind", SMALL)
def test_a_row_that_outgrows_its_scale_gets_another(kind: str) -> None:
    torch.manual_seed(0)
    form = FORMATS[kind]
    values = torch.rand(50, 16) - 0.5
    _, scales = encode(values, None, form)
    assert scales is not None
    codes, larger = encode(3 * values, scales, form)
    assert (larger > 2.5 * scales).all()
    assert torch.allclose(decode(codes, larger, form), 3 * values, atol=float(larger.max()))
