"""Four quarters are all usual cases, each once."""

from tests.cases.__main__ import LEFT_OUT, QUARTERS, chosen

NAMES = ["out-a", "out-b", "nn-x", *LEFT_OUT, "bundle-a", "read-a", "read-b", "read-c"]


def test_quarters_are_the_whole() -> None:
    usual = chosen(NAMES, None, None)
    assert usual == ["out-a", "out-b", "nn-x", "bundle-a", "read-a", "read-b", "read-c"]
    parts = [chosen(NAMES, None, quarter) for quarter in range(5, 5 + QUARTERS)]
    assert sorted(name for part in parts for name in part) == sorted(usual)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_pattern_takes_what_is_left_out_too() -> None:
    assert chosen(NAMES, "serve-*,read-b", None) == [*LEFT_OUT, "read-b"]
