"""Four quarters are all cases of what is built, each once."""

from tests.cases.__main__ import QUARTERS, chosen

NAMES = ["out-a", "out-b", "nn-x", "nn-ceiling", "bundle-a", "read-a", "read-b", "read-c"]


def test_quarters_are_the_whole() -> None:
    built = chosen(NAMES, "imaging", None, None)
    assert built == ["out-a", "out-b", "nn-ceiling", "read-a", "read-b", "read-c"]
    parts = [chosen(NAMES, "imaging", None, quarter) for quarter in range(5, 5 + QUARTERS)]
    assert sorted(name for part in parts for name in part) == sorted(built)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_pattern_takes_what_is_not_built_too() -> None:
    assert chosen(NAMES, "imaging", "nn-*,read-b", None) == ["nn-x", "nn-ceiling", "read-b"]
