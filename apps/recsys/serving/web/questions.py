"""Questions to the server: parameters and bodies of its routes, with their bounds.

msgspec checks them, and the server's own document (``openapi``) is made from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta, Struct

from apps.recsys.data.attributes.expression import comparisons, parse
from apps.recsys.planning.questions.where import LONGEST_SERVED, MOST_SERVED
from apps.recsys.planning.requests import split_ids
from apps.recsys.planning.service.limits import (
    LONGEST_SEARCH,
    MOST,
    MOST_ENTRIES,
    MOST_EVENTS,
    MOST_FOUND,
    MOST_LISTS,
    MOST_NAMED,
)
from common.errors import UsageError

K = Annotated[int, Meta(ge=1, le=MOST, description="number of items")]
Explain = Annotated[
    int, Meta(ge=0, le=MOST, description="items of the history that are named for each one: those that added most")
]
Where = Annotated[str, Meta(max_length=LONGEST_SERVED, description="an expression over the items' attributes")]
Ids = Annotated[list[str], Meta(max_length=MOST_NAMED)]
Id = str | int
IdList = Annotated[list[Id], Meta(max_length=MOST_NAMED)]
Fallback = Annotated[
    Literal["none", "popular"],
    Meta(description="what somebody gets whom the model does not know: 404, or popular items"),
]
Weight = Annotated[float, Meta(gt=0, le=1e6, description="as a value of the training data")]


class Nothing(Struct, forbid_unknown_fields=True, frozen=True):
    """No parameters."""


class UserQuery(Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Parameters of a list for a user."""

    k: K = 10
    explain: Explain = 0
    where: Where | None = None
    exclude: Ids = []
    only: Ids | None = None
    keep_seen: bool = False
    fallback: Fallback = "none"

    @property
    def entries(self) -> int:
        """Most items of the answer, with those that explain."""
        return self.k * (1 + self.explain)


class RecommendQuery(UserQuery, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Parameters of a list for a user or for a history."""

    user: str | None = None
    history: Ids | None = None


class SimilarQuery(Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Parameters of a list of similar items."""

    k: K = 10

    @property
    def entries(self) -> int:
        """Most items of the answer."""
        return self.k


class NamedSimilarQuery(SimilarQuery, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """The same, with the item."""

    item: str


class SearchQuery(Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Parameters of a search in titles."""

    q: Annotated[
        str, Meta(max_length=LONGEST_SEARCH, description="a part of the title; letters' case does not count")
    ] = ""
    k: Annotated[int, Meta(ge=1, le=MOST_FOUND, description="number of items")] = 10

    @property
    def entries(self) -> int:
        """Most items of the answer."""
        return self.k


class _Choice(Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """What lists are chosen from."""

    explain: Explain = 0
    where: Where | None = None
    exclude: IdList = []
    only: IdList | None = None
    keep_seen: bool = False
    fallback: Fallback = "none"


class Batch(_Choice, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Lists for several users and histories; with ``candidates`` these items alone are ranked, seen or not."""

    users: Annotated[list[Id], Meta(max_length=MOST_LISTS)] = []
    histories: Annotated[list[IdList], Meta(max_length=MOST_LISTS)] = []
    candidates: Annotated[list[Id], Meta(min_length=1, max_length=MOST_NAMED)] | None = None
    k: K | None = None

    @property
    def depth(self) -> int:
        """Items of each list: ten, or all candidates."""
        return self.k or (10 if self.candidates is None else min(len(self.candidates), MOST))

    @property
    def entries(self) -> int:
        """Most items of the answer, with those that explain."""
        return (len(self.users) + len(self.histories)) * self.depth * (1 + self.explain)


class Weighted(Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """An item of a session and what it counts."""

    id: Id
    weight: Weight = 1.0


class Session(_Choice, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Items that somebody had whom the model does not know; an item that comes twice counts the sum."""

    items: Annotated[list[Weighted], Meta(max_length=MOST_NAMED)]
    k: K = 10

    @property
    def entries(self) -> int:
        """Most items of the answer, with those that explain."""
        return self.k * (1 + self.explain)


class GivenEvent(Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """A user had an item."""

    user: Annotated[Id, Meta(description="may be new")]
    item: Id
    value: Weight | None = None
    time: Annotated[float, Meta(ge=0, le=1e11, description="seconds since 1970; now, if it is not there")] | None = None
    id: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=100,
                description="the sender's name for the event, so that it may be sent again",
            ),
        ]
        | None
    ) = None


class Events(Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Events, which are taken all or none."""

    events: Annotated[list[GivenEvent], Meta(min_length=1, max_length=MOST_EVENTS)]
    entries: ClassVar[int] = 0
    """Items of the answer."""


_LISTS = frozenset(("history", "exclude", "only"))
"""Parameters that hold ids, separated by commas, and may be repeated."""


PLAIN = 16
"""Most parameters of an address that is read as it stands."""


class Unanswerable(UsageError):
    """A question that is not of its form."""


def of_query(query: bytes, description: type[Struct]) -> Any:
    """Read the parameters of an address.

    Parameters
    ----------
    query
        What stands after the question mark.
    description
        The parameters' type.

    Raises
    ------
    Unanswerable
        An unknown parameter, one that is repeated and has one value only, or a value out of its bounds.
    """
    try:
        text = query.decode("ascii")
        if "%" in text or "+" in text or text.count("&") > PLAIN:
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MOST_NAMED + 16)
        else:  # the same, in a third of the time
            pairs = [(name, value) for name, _, value in (part.partition("=") for part in text.split("&") if part)]
    except ValueError as error:  # bytes that are no text, or too many parameters
        raise Unanswerable(f"the parameters cannot be read: {error}") from None
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in _LISTS:
            try:
                values.setdefault(name, []).extend(split_ids(value))
            except UsageError as error:
                raise Unanswerable(f"{name}: {error}") from None
        elif name in values:
            raise Unanswerable(f"{name} stands there twice")
        else:
            values[name] = value
    return _checked(lambda: msgspec.convert(values, description, strict=False))


def of_body(body: bytes, description: type[Struct]) -> Any:
    """Read a body of JSON; raises as ``of_query``."""
    return _checked(lambda: msgspec.json.decode(body, type=description))


def _checked(read: Any) -> Any:
    try:
        return read()
    except msgspec.ValidationError as error:
        raise Unanswerable(str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Unanswerable(f"the body is not JSON: {error}") from None


def texts(ids: Sequence[Id]) -> list[str]:
    """Ids as text: a number is one too."""
    return [str(id_) for id_ in ids]


def check_size(question: UserQuery | Batch | Session, *, named: int) -> None:
    """Check what no bound of a single field says.

    Raises
    ------
    Unanswerable
        Too many items in the answer, too many ids in the question, or too many comparisons in ``where``.
    """
    if question.entries > MOST_ENTRIES:
        what = "lists * k * (1 + explain)" if isinstance(question, Batch) else "k * (1 + explain)"
        raise Unanswerable(f"{what} is {question.entries:,}, at most {MOST_ENTRIES:,} are answered")
    if named > MOST_NAMED:
        raise Unanswerable(f"the question names {named:,} ids; at most {MOST_NAMED:,} are read")
    if question.where is not None and sum(1 for _ in comparisons(parse(question.where))) > MOST_SERVED:
        raise Unanswerable(f"where has more than {MOST_SERVED} comparisons")
