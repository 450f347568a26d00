"""References and expressions of a MONAI bundle's configuration, worked out without running any of it.

``"@a#b"`` is the value at ``b`` below ``a``. ``"$..."`` is a Python expression; here it is parsed, never evaluated by
Python, and only a small grammar is known: numbers, strings, lists, references, arithmetic on numbers, ``+`` of strings
and of lists, comparisons, ``and``, ``or``, ``not`` and ``A if C else B``. Everything else is refused by name.

Only what is asked for is looked at. What a bundle says about its data loaders, handlers and runs stays text.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from common.errors import BadInput

LONGEST = 1000
"""Characters of an expression."""
DEEPEST = 32
"""References that lead to each other."""
MOST_STEPS = 10_000
"""Values worked out for one file: references to references to references would double."""
LARGEST = 10_000
"""Length of a string or list that is put together."""
REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")
_NAME = "reference_{}"

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
    }
)
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = MappingProxyType(
    {
        ast.Eq: operator.eq,
        ast.NotEq: operator.ne,
        ast.Lt: operator.lt,
        ast.LtE: operator.le,
        ast.Gt: operator.gt,
        ast.GtE: operator.ge,
    }
)


class Configuration:
    """A parsed configuration file whose values are worked out when they are asked for.

    Examples
    --------
    >>> Configuration({"high": True, "size": "$[1.5] if not @high else [3, 2 + 1]", "same": "@size#1"})["same"]
    3
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content
        self._steps = 0

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def __getitem__(self, key: str) -> Any:
        return self.value(self._content[key])

    def get(self, key: str, default: Any) -> Any:
        """The value of a key, or what is given where there is none."""
        return self.value(self._content.get(key, default))

    def value(self, found: Any, depth: int = 0) -> Any:
        """A value whose own text is worked out; what a mapping or list holds stays as it is written.

        Raises
        ------
        BadInput
            An expression outside the grammar, or a reference to nothing or to itself.
        """
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise BadInput(f"more than {MOST_STEPS} values refer to each other")
        if not isinstance(found, str):
            return found
        if depth > DEEPEST:
            raise BadInput(f"{_short(found)}: references in a circle")
        if found.startswith("$"):
            return self._expression(found, depth)
        if found.startswith("%"):
            raise BadInput(f"{_short(found)}: text from other files is not read")
        if REFERENCE.fullmatch(found):
            return self._reference(found[1:], depth)
        return found

    def plain(self, found: Any, depth: int = 0) -> Any:
        """A value with everything in it worked out, for arguments of networks and transforms."""
        found = self.value(found, depth)
        if depth > DEEPEST:
            raise BadInput("values nested too deeply")
        if isinstance(found, list | tuple):
            return [self.plain(item, depth + 1) for item in found]
        if isinstance(found, dict):
            return {key: self.plain(item, depth + 1) for key, item in found.items()}
        return found

    def _reference(self, path: str, depth: int) -> Any:
        found: Any = self._content
        for key in re.split("#|::", path):
            found = self.value(found, depth + 1)
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise BadInput(f"@{path}: there is no such value") from None
        return self.value(found, depth + 1)

    def _expression(self, text: str, depth: int) -> Any:
        if len(text) > LONGEST:
            raise BadInput(f"{_short(text)}: an expression of more than {LONGEST} characters")
        references: list[str] = []

        def named(match: re.Match[str]) -> str:
            references.append(match[1])
            return _NAME.format(len(references) - 1)

        try:
            tree = ast.parse(REFERENCE.sub(named, text[1:].strip()), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise BadInput(f"{_short(text)}: not an expression") from None
        names = {_NAME.format(index): path for index, path in enumerate(references)}
        try:
            return self._node(tree, names, depth)
        except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, BadInput):
                raise BadInput(f"{_short(text)}: {error}") from None
            raise BadInput(f"{_short(text)}: cannot be worked out ({error})") from None

    def _node(self, node: ast.expr, names: Mapping[str, str], depth: int) -> Any:
        def of(inner: ast.expr) -> Any:
            return self._node(inner, names, depth)

        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return value
            case ast.Name(id=name) if name in names:
                return self._reference(names[name], depth)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [of(item) for item in items]
            case ast.UnaryOp(op=ast.USub() | ast.Not() as kind, operand=operand):
                return not of(operand) if isinstance(kind, ast.Not) else -of(operand)
            case ast.IfExp(test=test, body=body, orelse=otherwise):
                return of(body) if of(test) else of(otherwise)
            case ast.BoolOp(op=kind, values=values):
                return _decided(map(of, values), isinstance(kind, ast.Or))
            case ast.BinOp(left=left, op=kind, right=right):
                return _combined(kind, of(left), of(right))
            case ast.Compare(left=left, ops=[kind], comparators=[right]):
                return _compared(kind, of(left), of(right))
            case ast.Subscript(value=inner, slice=place):
                return of(inner)[of(place)]
            case _:
                raise BadInput(f"{ast.unparse(node)!r} is not in the grammar that is read")


def _decided(values: Iterator[Any], either: bool) -> Any:
    """The value that decides an ``or`` (``either``) or an ``and``, the last one if none does."""
    value = None
    for value in values:
        if bool(value) is either:
            break
    return value


def _compared(kind: ast.cmpop, left: Any, right: Any) -> bool:
    if type(kind) not in _COMPARE:
        raise TypeError("a comparison that is not read")
    return _COMPARE[type(kind)](left, right)


def _combined(kind: ast.operator, left: Any, right: Any) -> Any:
    """Arithmetic on numbers; strings and lists can only be put together, so that nothing can grow out of hand."""
    numbers = all(isinstance(value, int | float) for value in (left, right))
    together = isinstance(kind, ast.Add) and type(left) is type(right) and isinstance(left, str | list)
    if type(kind) not in _BINARY or not (numbers or together):
        raise TypeError(f"{type(left).__name__} and {type(right).__name__}")
    if together and len(left) + len(right) > LARGEST:
        raise ValueError(f"more than {LARGEST} elements")
    return _BINARY[type(kind)](left, right)


def _short(text: str) -> str:
    """Text from a file, cut to a line's length."""
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:77]}..."
