"""The small language of ``--where``: comparisons of attributes with values, joined by AND, OR, NOT and parentheses.

A recursive descent over this grammar, with a limit on nesting; nothing is evaluated as Python::

    expression   conjunction { OR conjunction }
    conjunction  factor { AND factor }
    factor       { NOT } ( "(" expression ")" | comparison )
    comparison   name operator value  |  name [ NOT ] IN "(" value { "," value } ")"
    operator     = == != <> < <= > >=
    value        a number, a text in quotes, or a word

A name is a word or stands in quotes. A quote within quotes is written twice. NOT is taken inwards while parsing, so the
tree has only AND, OR and comparisons, some of them negated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from common.errors import UsageError

LONGEST = 1 << 16
"""Most characters of an expression."""
DEEPEST = 50
"""Most parentheses within each other: the parser, and what evaluates the tree, call themselves for each."""
MOST_COMPARISONS = 500
"""Most comparisons of an expression; each has a table of the attribute's distinct values."""

_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))"
    r"|(?P<word>[^\W\d][\w-]*)"
    r"|(?P<text>'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")"
    r"|(?P<sign><=|>=|!=|<>|==|[=<>(),])"
)
_KEYWORDS = ("and", "or", "not", "in")
Operator = Literal["=", "<", "<=", ">", ">=", "in"]
_NEGATED = {"!=": "=", "<>": "="}
_OPERATORS = ("=", "==", "!=", "<>", "<", "<=", ">", ">=")


class Value(NamedTuple):
    """A value of an expression."""

    text: str
    kind: Literal["number", "text", "word"]
    position: int
    """Number of its first character, from 1."""

    @property
    def number(self) -> float:
        """The number; only for the kind ``"number"``."""
        return float(self.text)


@dataclass(frozen=True, slots=True)
class Comparison:
    """An attribute compared with values: several with ``in``, else one.

    Attributes
    ----------
    name
        The attribute.
    operator
        One of ``Operator``.
    values
        What it is compared with.
    negated
        True if items match of which no value does, if they have a value.
    position
        Number of the first character, from 1.
    """

    name: str
    operator: Operator
    values: tuple[Value, ...]
    negated: bool
    position: int


@dataclass(frozen=True, slots=True)
class Group:
    """Parts of which all must match, or any."""

    all_of: bool
    parts: tuple[Expression, ...]


Expression = Comparison | Group


class Token(NamedTuple):
    """A part of the text."""

    kind: str
    text: str
    position: int


def parse(text: str) -> Expression:
    """Parse an expression.

    Parameters
    ----------
    text
        As the user wrote it.

    Raises
    ------
    UsageError
        It is not of the grammar, or larger than the limits; the message names the character.

    Examples
    --------
    >>> parse("not (year < 1990 or genre in (Comedy, 'Film Noir'))").all_of
    True
    """
    if len(text) > LONGEST:
        raise UsageError(f"--where: {len(text):,} characters; at most {LONGEST:,} are read")
    return _Parser(text).parse()


def comparisons(tree: Expression) -> Iterator[Comparison]:
    """Yield the comparisons of a tree, from left to right."""
    if isinstance(tree, Comparison):
        yield tree
        return
    for part in tree.parts:
        yield from comparisons(part)


def depth(tree: Expression) -> int:
    """Number of groups within each other."""
    return 0 if isinstance(tree, Comparison) else 1 + max(map(depth, tree.parts))


class _Parser:
    """Takes tokens from left to right."""

    def __init__(self, text: str) -> None:
        self._tokens, self._next, self._depth, self._count = list(_tokens(text)), 0, 0, 0

    def parse(self) -> Expression:
        tree = self._expression(negated=False)
        if self._token.kind != "end":
            raise self._unexpected("and, or, or the end")
        return tree

    @property
    def _token(self) -> Token:
        return self._tokens[self._next]

    def _take(self) -> Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _keyword(self, *words: str) -> bool:
        """Take the next token if it is one of some keywords."""
        found = self._token.kind == "word" and self._token.text.lower() in words
        self._next += found
        return found

    def _sign(self, sign: str) -> bool:
        found = self._token.kind == "sign" and self._token.text == sign
        self._next += found
        return found

    def _unexpected(self, expected: str) -> UsageError:
        token = self._token
        found = "the text ends" if token.kind == "end" else f"{token.text[:40]!r} stands"
        return UsageError(f"--where: {found} at character {token.position}, where {expected} is expected")

    def _expression(self, *, negated: bool) -> Expression:
        parts = [self._conjunction(negated=negated)]
        while self._keyword("or"):
            parts.append(self._conjunction(negated=negated))
        return _group(parts, all_of=negated)

    def _conjunction(self, *, negated: bool) -> Expression:
        parts = [self._factor(negated=negated)]
        while self._keyword("and"):
            parts.append(self._factor(negated=negated))
        return _group(parts, all_of=not negated)

    def _factor(self, *, negated: bool) -> Expression:
        while self._keyword("not"):
            negated = not negated
        position = self._token.position
        if not self._sign("("):
            return self._comparison(negated=negated)
        self._depth += 1
        if self._depth > DEEPEST:
            raise UsageError(f"--where: more than {DEEPEST} parentheses within each other, at character {position}")
        inner = self._expression(negated=negated)
        if not self._sign(")"):
            raise self._unexpected(f"and, or, or ) for the ( at character {position}")
        self._depth -= 1
        return inner

    def _comparison(self, *, negated: bool) -> Comparison:
        token = self._token
        if token.kind not in ("word", "text") or token.text.lower() in _KEYWORDS:
            raise self._unexpected("the name of an attribute")
        self._take()
        self._count += 1
        if self._count > MOST_COMPARISONS:
            raise UsageError(f"--where: more than {MOST_COMPARISONS} comparisons, at character {token.position}")
        name = _unquoted(token)
        flipped = self._keyword("not")
        if self._keyword("in"):
            return Comparison(name, "in", self._list(), negated != flipped, token.position)
        if flipped:
            raise self._unexpected("in")
        if self._token.text not in _OPERATORS or self._token.kind != "sign":
            raise self._unexpected(f"a comparison (=, !=, <, <=, >, >=, in) of {name!r}")
        sign = self._take().text
        operator = {"==": "=", **_NEGATED}.get(sign, sign)
        return Comparison(name, operator, (self._value(),), negated != (sign in _NEGATED), token.position)  # type: ignore[arg-type]

    def _list(self) -> tuple[Value, ...]:
        if not self._sign("("):
            raise self._unexpected("( and a list of values")
        values = [self._value()]
        while self._sign(","):
            values.append(self._value())
        if not self._sign(")"):
            raise self._unexpected(", or )")
        return tuple(values)

    def _value(self) -> Value:
        token = self._token
        if token.kind not in ("number", "word", "text") or (token.kind == "word" and token.text.lower() in _KEYWORDS):
            raise self._unexpected("a number, a word or a text in quotes")
        self._take()
        if token.kind == "number" and not math.isfinite(float(token.text)):
            raise UsageError(f"--where: the number at character {token.position} is too large")
        return Value(_unquoted(token), token.kind, token.position)  # type: ignore[arg-type]


def _tokens(text: str) -> Iterator[Token]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            what = "a quote that does not end" if text[place] in "'\"" else f"{text[place]!r} has no meaning"
            hint = "; a text with other characters than letters, digits, _ and - stands in quotes"
            raise UsageError(f"--where: {what}, at character {place + 1}{hint if what[0] != 'a' else ''}")
        if (kind := str(match.lastgroup)) != "space":
            yield Token(kind, match[0], place + 1)
        place = match.end()
    yield Token("end", "", len(text) + 1)


def _unquoted(token: Token) -> str:
    quote = token.text[0]
    return token.text[1:-1].replace(2 * quote, quote) if token.kind == "text" else token.text


def _group(parts: Sequence[Expression], *, all_of: bool) -> Expression:
    return parts[0] if len(parts) == 1 else Group(all_of, tuple(parts))
