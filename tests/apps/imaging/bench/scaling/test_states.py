"""What the plan says of states that are shared out is what ranks have of them."""

from apps.imaging.bench.scaling import states


def test_a_rank_has_the_bytes_that_are_predicted() -> None:
    """Half of parameters, gradients and states of AdamW, also where parameters are sent in bfloat16; predicted within
    5 %, and never less than there are. Losses are those of float32, which runs too, to 1 %."""
    found = states.judged("bf16", filters=24)
    assert found["over_whole"] <= 0.51
    assert 1 <= found["predicted_over_own"] <= 1.051
    assert 0 < found["loss_difference"] <= 1e-2
