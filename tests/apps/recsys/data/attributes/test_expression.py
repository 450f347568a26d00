"""The grammar of ``--where``: what is read as what, and every refusal by the character at which it happens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys.data.attributes.expression import (
    DEEPEST,
    LONGEST,
    MOST_COMPARISONS,
    Comparison,
    Group,
    Value,
    comparisons,
    depth,
    parse,
)
from common.errors import UsageError
from tests.messages import refused

PIECES = [
    "a",
    " ",
    "=",
    "<",
    ">=",
    "in",
    "not ",
    "and ",
    "or ",
    "(",
    ")",
    ",",
    "1",
    "-2.5",
    "'x y'",
    '"q"',
    "'",
    "é",
    "\n",
    "\x1b",
]


def test_and_binds_before_or() -> None:
    tree = parse("a = 1 or b < 2 and c >= x-y")
    assert tree == Group(
        False,
        (
            Comparison("a", "=", (Value("1", "number", 5),), False, 1),
            Group(
                True,
                (
                    Comparison("b", "<", (Value("2", "number", 14),), False, 10),
                    Comparison("c", ">=", (Value("x-y", "word", 25),), False, 20),
                ),
            ),
        ),
    )
    assert depth(tree) == 2 and [one.name for one in comparisons(tree)] == ["a", "b", "c"]


def test_not_goes_inwards() -> None:
    tree = parse("not (a = 1 or not b in (1, 'x y', \"it's\") and c != 2)")
    assert isinstance(tree, Group) and tree.all_of
    first, second = tree.parts
    assert isinstance(first, Comparison) and first.negated
    assert isinstance(second, Group) and not second.all_of
    assert [(one.name, one.operator, one.negated) for one in comparisons(second)] == [
        ("b", "in", False),
        ("c", "=", False),
    ]
    assert [value.text for value in next(comparisons(second)).values] == ["1", "x y", "it's"]
    assert parse("not not a = 1") == Comparison("a", "=", (Value("1", "number", 13),), False, 9)
    assert [one.negated for one in comparisons(parse("a not in (1) and a <> 1 and not a != 1 and a == 1"))] == [
        True,
        True,
        False,
        False,
    ]


def test_names_and_texts_in_quotes() -> None:
    (one,) = comparisons(parse("'release \"year\"' = 'it''s'"))
    assert (one.name, one.values[0].text) == ('release "year"', "it's")
    (one,) = comparisons(parse('"in" = "a""b"'))
    assert (one.name, one.values[0].text) == ("in", 'a"b')


@pytest.mark.parametrize(
    ("text", "number"), [("1990", 1990), ("-.5", -0.5), ("+3.", 3), ("2e3", 2000), ("1.5E-2", 0.015)]
)
def test_numbers(text: str, number: float) -> None:
    (one,) = comparisons(parse(f"a<{text}"))
    assert one.values[0].number == number


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", ("ends", "character 1", "attribute")),
        ("a", ("ends", "character 2", "comparison", "'a'")),
        ("a = ", ("ends", "character 5")),
        ("= 3", ("'='", "character 1", "attribute")),
        ("1990 < year", ("'1990'", "character 1", "attribute")),
        ("a = 1 b = 2", ("'b'", "character 7", "end")),
        ("a = 1 and", ("ends", "character 10")),
        ("a = 1 < 2", ("'<'", "character 7")),
        ("(a = 1", ("ends", "character 7", ")", "character 1")),
        ("a = 1)", ("')'", "character 6")),
        ("a in 1", ("'1'", "character 6", "(")),
        ("a in ()", ("')'", "character 7")),
        ("a in (1 2)", ("'2'", "character 9")),
        ("a in (1, or)", ("'or'", "character 10")),
        ("a not = 1", ("'='", "character 7", "in")),
        ("exec(x)", ("'('", "character 5", "comparison")),
        ("a = f(1)", ("'('", "character 6")),
        ("a.b = 1", ("'.'", "character 2")),
        ("a = b.c", ("'.'", "character 6")),
        ("a = 'x", ("quote", "character 5")),
        ("a = 12abc", ("'1'", "character 5")),
        ("a = 1; drop", ("';'", "character 6")),
        ("a = 1 & b = 2", ("'&'", "character 7")),
        ("a = `ls`", ("'`'", "character 5")),
        ("a\x00 = 1", ("character 2",)),
        ("a = 1e999", ("character 5", "large")),
        ("(" * 1000 + "a = 1" + ")" * 1000, (DEEPEST, f"character {DEEPEST + 1}")),
        ("not (" * 1000 + "a = 1" + ")" * 1000, (DEEPEST,)),
        (" or ".join(["a=1"] * (MOST_COMPARISONS + 1)), (MOST_COMPARISONS,)),
        ("a" * (LONGEST + 1), (f"{LONGEST:,}",)),
    ],
)
def test_what_is_refused(text: str, facts: tuple[object, ...]) -> None:
    with refused(UsageError, "--where", *facts) as caught:
        parse(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_as_deep_and_long_as_is_allowed() -> None:
    assert parse("(" * DEEPEST + "a = 1" + ")" * DEEPEST) == parse(" " * DEEPEST + "a = 1")
    assert len(list(comparisons(parse(" or ".join(["a=1"] * MOST_COMPARISONS))))) == MOST_COMPARISONS
    assert parse("not " * 10_000 + "a = 1") == parse("    " * 10_000 + "a = 1")


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=14).map("".join)))
def test_any_text_is_read_or_refused_in_a_line(text: str) -> None:
    try:
        tree = parse(text)
    except UsageError as error:
        assert str(error).startswith("--where: ") and "\n" not in str(error) and str(error).isprintable()
        return
    assert [*comparisons(tree)] and all(one.values for one in comparisons(tree))
