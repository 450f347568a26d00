"""Descriptions of JSON files as types, and the check that a value read from a file is of its description.

A description is a ``TypedDict`` of ``int``, ``float``, ``str``, ``bool``, ``None``, ``Any``, ``Literal``, ``list``,
``tuple``, ``Mapping``, unions and other descriptions. ``Annotated[int, ("minimum", 0)]`` adds keywords of JSON Schema;
a ``title`` among them is what messages say is expected. Keys that a description does not name are allowed, so that a
newer version may add some, unless people write the file by hand (``closed``).

msgspec decodes the same faster, but ``import msgspec`` adds 1.06 MiB (5 to 9 ms), which is 1.1 % of the 95 MiB that
``recsys recommend`` takes; what is here adds 0.1 MiB.
"""

import json
import re
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from common.errors import BadInput

T = TypeVar("T")
MOST_BYTES = 16 << 20
"""Largest size of a file that is read as a whole: a model of 118 classes takes 20 kB."""

_NAMES = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_BOUNDS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("at least", lambda value, bound: value >= bound),
    "maximum": ("at most", lambda value, bound: value <= bound),
    "exclusiveMinimum": ("above", lambda value, bound: value > bound),
    "exclusiveMaximum": ("below", lambda value, bound: value < bound),
    "pattern": ("text like", lambda value, bound: re.search(bound, value) is not None),
    "minItems": ("of a length of at least", lambda value, bound: len(value) >= bound),
}
"""Keywords of JSON Schema, in words and as a condition; one that compares with NaN is not met."""


class Mismatch(ValueError):
    """A value is not of its description: where, what is expected, and what is there."""


def read(path: Path, description: type[T], *, what: str, closed: bool = False) -> T:
    """Read a JSON file of a known description.

    Parameters
    ----------
    what
        The file's kind for messages, ``"model manifest"`` for example.
    closed
        True to refuse keys that the description does not name: a misspelt one would have no effect.

    Raises
    ------
    BadInput
        If the file cannot be read, is larger than ``MOST_BYTES``, is not JSON, or does not match; in one line.
    """
    public = f"{what} unreadable"
    try:
        with path.open("rb") as stream:
            text = stream.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise BadInput(f"{path}: larger than any {what}", public=public)
        value = json.loads(text)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}", public=public) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: damaged, not JSON ({error})", public=public) from None
    found = require(value, description, path=path, what=what)
    if closed and (unknown := list(unknown_keys(value, description))):
        raise BadInput(f"{path}: not a {what} of peakline: unknown {', '.join(unknown)}", public=public)
    return found


def unknown_keys(value: Any, description: Any, location: str = "") -> Iterator[str]:
    """Where a value that matches a description has keys that it does not name.

    Examples
    --------
    >>> from typing import TypedDict
    >>> class Point(TypedDict):
    ...     x: int
    >>> list(unknown_keys([{"x": 1}, {"x": 2, "y": 3}], list[Point]))
    ["'y' in [1]"]
    """
    origin, arguments = get_origin(description), get_args(description)
    if origin is Annotated:
        yield from unknown_keys(value, arguments[0], location)
    elif origin is list:
        for number, one in enumerate(value):
            yield from unknown_keys(one, arguments[0], f"{location}[{number}]")
    elif is_typeddict(description):
        named = fields(description)
        yield from (f"{key!r}{f' in {location}' if location else ''}" for key in value if key not in named)
        for name, kind in named.items():
            if name in value:
                yield from unknown_keys(value[name], kind, f"{location}.{name}" if location else name)


def require(value: Any, description: type[T], *, path: Path, what: str, location: str = "") -> T:
    """The value, where it matches its description; raises ``BadInput`` that names the file where it does not."""
    try:
        check(value, description, location)
    except Mismatch as error:
        raise BadInput(f"{path}: not a {what} of peakline: {error}", public=f"{what} unreadable") from None
    return cast(T, value)


def check(value: Any, description: Any, location: str = "") -> None:
    """Check a value against its description.

    Parameters
    ----------
    value
        As ``json.loads`` gives it.
    location
        Location of the value in the whole, for messages.

    Raises
    ------
    Mismatch
        At the first part that does not match.
    """
    origin, arguments = get_origin(description), get_args(description)
    if origin is Annotated:
        check(value, arguments[0], location)
        _check_bounds(value, dict(arguments[1:]), location)
    elif origin is Literal:
        if not any(value == one and type(value) is type(one) for one in arguments):
            raise _mismatch(value, "one of " + ", ".join(map(str, arguments)), location)
    elif origin in (Union, types.UnionType):
        _check_union(value, arguments, location)
    elif origin is Mapping:
        _check_mapping(value, arguments, location)
    elif origin in (list, tuple):
        _check_array(value, origin, arguments, location)
    elif is_typeddict(description):
        _check_fields(value, description, location)
    elif description is not Any and not _is_plain(value, description):
        raise _mismatch(value, _NAMES[description], location)


@cache
def fields(description: Any) -> dict[str, Any]:
    """Names and types of a description's fields, whether they are required or not."""
    hints = get_type_hints(description, include_extras=True)
    return {name: get_args(kind)[0] if get_origin(kind) is NotRequired else kind for name, kind in hints.items()}


def _is_plain(value: Any, kind: type) -> bool:
    """True if a value is of a plain type; a truth value is no number, and an integer is one."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def _check_bounds(value: Any, bounds: Mapping[str, Any], location: str) -> None:
    for keyword, bound in bounds.items():
        if keyword in _BOUNDS and not _BOUNDS[keyword][1](value, bound):
            raise _mismatch(value, bounds.get("title", f"{_BOUNDS[keyword][0]} {bound}"), location)


def _check_mapping(value: Any, arguments: tuple[Any, ...], location: str) -> None:
    if not isinstance(value, dict):
        raise _mismatch(value, "an object", location)
    for key, one in value.items():
        check(key, arguments[0], f"{location}, a key,")
        check(one, arguments[1], f"{location}[{key!r}]")


def _check_fields(value: Any, description: Any, location: str) -> None:
    if not isinstance(value, dict):
        raise _mismatch(value, "an object", location)
    if absent := sorted(description.__required_keys__ - value.keys()):
        raise Mismatch(f"{location + ': ' if location else ''}{', '.join(absent)} missing")
    for name, kind in fields(description).items():
        if name in value:
            check(value[name], kind, f"{location}.{name}" if location else name)


def _check_union(value: Any, choices: tuple[Any, ...], location: str) -> None:
    """Check against each choice; what is wrong with the last one that is no plain type is told."""
    told: Mismatch | None = None
    for choice in choices:
        try:
            return check(value, choice, location)
        except Mismatch as error:
            if choice not in _NAMES and value is not None:
                told = error
    raise told or _mismatch(value, " or ".join(_NAMES.get(choice, "an object") for choice in choices), location)


def _check_array(value: Any, origin: Any, arguments: tuple[Any, ...], location: str) -> None:
    if not isinstance(value, list):
        raise _mismatch(value, "an array", location)
    kinds = arguments
    if origin is list or arguments[-1] is Ellipsis:
        kinds = (arguments[0],) * len(value)
    if len(kinds) != len(value):
        raise _mismatch(value, f"an array of {len(kinds)}", location)
    for number, (one, kind) in enumerate(zip(value, kinds, strict=True)):
        check(one, kind, f"{location}[{number}]")


def _mismatch(value: Any, expected: str, location: str) -> Mismatch:
    there = "a truth value" if isinstance(value, bool) else _NAMES.get(type(value), "")
    if isinstance(value, dict | list):
        there = "an object" if isinstance(value, dict) else f"an array of {len(value)}"
    elif isinstance(value, int | float | str):
        text = repr(value) if isinstance(value, str) else str(value)
        there = text if len(text) <= 40 else there
    return Mismatch(f"{location or 'the whole'} is {there}, expected {expected}")
