"""Evaluate references and expressions of a MONAI bundle's configuration without running any code of it.

``"@a#b"`` is the value at ``b`` below ``a``. ``"$..."`` is a Python expression. It is parsed, and its syntax tree is
evaluated here, never by Python, in a small grammar: numbers, strings, lists, references, arithmetic on numbers, ``+``
of strings and of lists, ``-`` of sets, comparisons, ``and``, ``or``, ``not``, ``A if C else B``, ``[A for B in C]``,
``range``, and ``len``, ``int``, ``float``, ``list``, ``tuple`` and ``set`` of one value. All else is refused by name.

Values are evaluated only when they are read; data loaders, handlers and the bundle's program never are.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from common.errors import BadInput

LONGEST = 1000
"""Most characters of an expression."""
DEEPEST = 32
"""Most references in a chain."""
MOST_STEPS = 10_000
"""Most values evaluated for one file; the number could double with each level of references."""
LARGEST = 10_000
"""Most elements of a string or list that an expression makes."""
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
    """A parsed configuration file whose values are evaluated when they are read.

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

    def raw(self, key: str) -> Any:
        """The value of a key as it is in the file."""
        return self._content.get(key)

    def get(self, key: str, default: Any) -> Any:
        """The value of a key, or ``default`` without such a key."""
        return self.value(self._content.get(key, default))

    def value(self, value: Any, depth: int = 0) -> Any:
        """Evaluate a value; the elements of a mapping or list are not evaluated.

        Raises
        ------
        BadInput
            An expression outside the grammar, or a reference to a missing value or to itself.
        """
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise BadInput(f"more than {MOST_STEPS} values refer to each other")
        if not isinstance(value, str):
            return value
        if depth > DEEPEST:
            raise BadInput(f"{_short(value)}: references in a circle")
        if value.startswith("$"):
            return self._expression(value, depth)
        if value.startswith("%"):
            raise BadInput(f"{_short(value)}: text from other files is not read")
        if REFERENCE.fullmatch(value):
            return self._reference(value[1:], depth)
        return value

    def plain(self, value: Any, depth: int = 0) -> Any:
        """Evaluate a value with all its elements, for arguments of networks and transforms."""
        value = self.value(value, depth)
        if depth > DEEPEST:
            raise BadInput("values nested too deeply")
        if isinstance(value, list | tuple):
            return [self.plain(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {key: self.plain(item, depth + 1) for key, item in value.items()}
        return value

    def _reference(self, path: str, depth: int) -> Any:
        value: Any = self._content
        for key in re.split("#|::", path):
            value = self.value(value, depth + 1)
            try:
                value = value[int(key)] if isinstance(value, list) else value[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise BadInput(f"@{path}: there is no such value") from None
        return self.value(value, depth + 1)

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
            return _plain(self._node(tree, names, depth))
        except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, BadInput):
                raise BadInput(f"{_short(text)}: {error}") from None
            raise BadInput(f"{_short(text)}: cannot be evaluated ({error})") from None

    def _repeated(self, node: ast.expr, names: Mapping[str, Any], depth: int) -> Any:
        """One element of a comprehension, which counts as a value."""
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise BadInput(f"more than {MOST_STEPS} values refer to each other")
        return self._node(node, names, depth)

    def _made(self, node: ast.ListComp | ast.Call, names: Mapping[str, Any], depth: int) -> Any:
        """The value of a comprehension or of a call."""
        match node:
            case ast.ListComp(
                elt=element, generators=[ast.comprehension(target=ast.Name(id=name), iter=source, ifs=[], is_async=0)]
            ) if name not in names:
                items = _listed(self._node(source, names, depth))
                return [self._repeated(element, {**names, name: (item,)}, depth) for item in items]
            case ast.Call(func=ast.Name(id="range"), args=[*limits], keywords=[]) if 0 < len(limits) < 4:
                return _numbers(*(self._node(limit, names, depth) for limit in limits))
            case ast.Call(func=ast.Name(id=name), args=[inner], keywords=[]) if name in _CALLS:
                return _called(name, self._node(inner, names, depth))
        raise BadInput(f"{ast.unparse(node)!r} is not in the grammar that is read")

    def _node(self, node: ast.expr, names: Mapping[str, Any], depth: int) -> Any:
        """The value of a node; ``names`` are references' paths, and one-tuples of values."""

        def of(inner: ast.expr) -> Any:
            return self._node(inner, names, depth)

        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return value
            case ast.Name(id=name) if name in names:
                return self._reference(names[name], depth) if isinstance(names[name], str) else names[name][0]
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
            case ast.ListComp() | ast.Call():
                return self._made(node, names, depth)
            case ast.Subscript(value=inner, slice=index):
                return of(inner)[of(index)]
            case _:
                raise BadInput(f"{ast.unparse(node)!r} is not in the grammar that is read")


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        raise TypeError("a set, whose order is open; list makes one of it")
    return value


def _listed(value: Any) -> list[Any]:
    """A list of a list, or of a set of numbers, in their order."""
    if isinstance(value, frozenset):
        if not all(type(item) is int for item in value):
            raise TypeError("the order of a set of other values than whole numbers is open")
        return sorted(value)
    if not isinstance(value, list):
        raise TypeError(f"elements of {type(value).__name__}")
    return list(value)


def _numbers(*limits: Any) -> list[int]:
    if not all(type(limit) is int for limit in limits):
        raise TypeError("range of other values than whole numbers")
    numbers = range(*limits)
    if len(numbers) > LARGEST:
        raise ValueError(f"more than {LARGEST} elements")
    return list(numbers)


def _decided(values: Iterator[Any], either: bool) -> Any:
    """The value that decides an ``or`` (``either``) or an ``and``; the last one if none does."""
    value = None
    for value in values:
        if bool(value) is either:
            break
    return value


_CALLS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {"len": len, "int": int, "float": float, "list": _listed, "tuple": _listed, "set": frozenset}
)


def _called(name: str, value: Any) -> Any:
    if isinstance(value, str) and name != "len":
        raise TypeError(f"{name} of a text")
    return _CALLS[name](value)


def _compared(kind: ast.cmpop, left: Any, right: Any) -> bool:
    if type(kind) not in _COMPARE:
        raise TypeError("a comparison that is not read")
    return _COMPARE[type(kind)](left, right)


def _combined(kind: ast.operator, left: Any, right: Any) -> Any:
    """Arithmetic on numbers; strings and lists can only be joined, so that no value grows beyond bounds."""
    if isinstance(kind, ast.Sub) and isinstance(left, frozenset) and isinstance(right, frozenset):
        return left - right
    numbers = all(isinstance(value, int | float) for value in (left, right))
    together = isinstance(kind, ast.Add) and type(left) is type(right) and isinstance(left, str | list)
    if type(kind) not in _BINARY or not (numbers or together):
        raise TypeError(f"{type(left).__name__} and {type(right).__name__}")
    if together and len(left) + len(right) > LARGEST:
        raise ValueError(f"more than {LARGEST} elements")
    return _BINARY[type(kind)](left, right)


def _short(text: str) -> str:
    """Text from a file in one line of at most 80 characters."""
    joined = " ".join(text.split())
    return joined if len(joined) <= 80 else f"{joined[:77]}..."
