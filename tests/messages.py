"""Assertions on messages by their facts: numbers, names, files and options, never whole sentences."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from common.errors import DoesNotFit
from common.memory.plan.explain import refusal_text


def missing(text: str, *facts: object) -> list[str]:
    """The facts that do not stand in the text as words of their own.

    Upper and lower case are the same; ``3`` does not stand in ``13`` or ``3.5``. Folders are left out of the text
    first, since they may hold any number (``pytest-3``), unless the fact itself has a slash.
    """
    bare = re.sub(r"(?<!\w)(\w+:/)?/[^\s'\"<>]*/", "", text)
    return [str(fact) for fact in facts if not _stands(str(fact), text if "/" in str(fact) else bare)]


def _stands(fact: str, text: str) -> bool:
    before = r"(?<![\w-])(?<!\d[.,])" if fact[0].isalnum() else ""
    after = r"(?!\w|[.,]\d)" if fact[-1].isalnum() else ""
    return re.search(before + re.escape(fact) + after, text, re.IGNORECASE) is not None


def says(text: object, *facts: object) -> None:
    """Every fact stands in the text."""
    if isinstance(text, DoesNotFit):
        text = refusal_text(text)
    absent = missing(str(text), *facts)
    assert facts and not absent, f"{absent} not in: {text}"


@contextmanager
def refused(error: type[BaseException], *facts: object) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """The block raises ``error``, whose message has every fact."""
    with pytest.raises(error) as caught:
        yield caught
    says(caught.value, *facts)


def continued(text: object, *facts: object) -> None:
    """It tells that earlier work was taken up, with the facts."""
    assert re.search(r"\b(continu|resum)\w*", str(text)), f"nothing was continued: {text}"
    assert not missing(str(text), *facts), text
