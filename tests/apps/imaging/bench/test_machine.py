"""The yardstick of a machine's speed."""

from apps.imaging.bench.whole_body.machine import multiplications


def test_the_peak_is_the_faster_of_two() -> None:
    found = multiplications(1)
    assert found["peak"] == max(found["product"], found["convolution"])
    assert 0.5 < min(found.values()) < max(found.values()) < 1000  # 10^9 a second on one core
