"""The assertion that others lean on: it must be able to fail."""

import pytest

from tests.messages import missing, refused, says

TOLD = "/tmp/pytest-7/in.csv, line 3: '--memory 64.25MiB' leaves 1,024 of Items -1 (K/N), as http://host:8/9/x says"


@pytest.mark.parametrize("fact", ["in.csv", 3, "line 3", "--memory", "--memory 64.25MiB", "1,024", "items", -1, "K/N"])
def test_facts_that_stand_there(fact: object) -> None:
    assert not missing(TOLD, fact)
    assert not missing(TOLD, "/tmp/pytest-7/in.csv", fact)


@pytest.mark.parametrize(
    "fact", ["7", "pytest", 64, 25, "25MiB", "1", "024", "Item", "--mem", "memory", "csv.gz", "n.csv", 8, 9]
)
def test_parts_of_words_and_of_numbers_are_not_facts(fact: object) -> None:
    assert missing(TOLD, "line", fact) == [str(fact)]
    with pytest.raises(AssertionError, match=str(fact)):
        says(TOLD, fact)


def test_a_refusal_without_its_fact_fails() -> None:
    with refused(ValueError, "4 tiles"):
        raise ValueError("needs 4 tiles")
    with pytest.raises(AssertionError), refused(ValueError, 5):
        raise ValueError("needs 4 tiles")
