"""Columns of users, items, values, times and titles in a table, recognised by their usual names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import BadInput

USER_NAMES = ("user", "userid", "uid", "customer", "customerid", "visitorid", "reviewerid")
ITEM_NAMES = ("item", "itemid", "iid", "movieid", "artistid", "trackid", "songid", "bookid", "productid", "asin")
VALUE_NAMES = ("value", "rating", "weight", "count", "playcount", "plays", "quantity", "score")
TIME_NAMES = ("time", "timestamp", "ts", "date", "datetime", "seq")
TITLE_NAMES = ("title", "name", "label")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read; ``None``: absent, or not named by the user."""

    user: str | None = None
    item: str | None = None
    value: str | None = None
    time: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Layout of a text file, as far as the user states it."""

    delimiter: str | None = None
    """Separator of columns: a character, ``::``, ``tab``, ``space``, or ``list`` for lines of a user and its
    items; ``None``: found in the file."""
    decimal: str = "."
    """Decimal mark of numbers."""
    headed: bool = True
    """False if the first line is data."""


def choose(names: Sequence[str], wanted: Columns, where: str, delimiter: str = ",") -> Columns:
    """Choose columns among ``names``.

    Parameters
    ----------
    wanted
        Names that the user gave; any other column is found by its usual names, user and item then by position.
    where
        Origin of the names: the path of a file, for messages.
    delimiter
        Delimiter between the names in the file.

    Raises
    ------
    BadInput
        No such column, one column only, or names that look like data.
    """
    for name in (wanted.user, wanted.item, wanted.value, wanted.time):
        if name is not None and name not in names:
            raise BadInput(f"{where}: no column {name!r}; it has {', '.join(names)}", public="no such column")
    if len(names) < 2:
        raise BadInput(
            f"{where}: one column only ({names[0]!r}); a user and an item are needed", public="too few columns"
        )
    user = wanted.user or _by_name(names, USER_NAMES, taken={wanted.item})
    item = wanted.item or _by_name(names, ITEM_NAMES, taken={user})
    if (user is None or item is None) and _like_data(names):
        first = delimiter.join(names)
        raise BadInput(
            f"{where}: the first line looks like data ({first}); put column names above it, or name what is there with"
            " --no-header, or with --user-col and --item-col",
            public="no header",
        )
    rest = [name for name in names if name not in (user, item)]
    user = user or rest.pop(0)
    item = item or rest.pop(0)
    value = wanted.value or _by_name(names, VALUE_NAMES, taken={user, item})
    time = wanted.time or _by_name(names, TIME_NAMES, taken={user, item, value})
    return Columns(user, item, value, time)


def by_place(names: Sequence[str], wanted: Columns, chosen: Columns) -> tuple[str, ...]:
    """Those of ``user`` and ``item`` that ``choose`` took for their place, because no name was known."""
    by_name = {
        "user": wanted.user or _by_name(names, USER_NAMES, taken={wanted.item}),
        "item": wanted.item or _by_name(names, ITEM_NAMES, taken={chosen.user}),
    }
    return tuple(what for what, name in by_name.items() if name is None)


def _like_data(names: Sequence[str]) -> bool:
    """True if a first line is hardly one of names: one of them is a number, or all have digits."""
    cells = [name.strip() for name in names]
    return any(map(is_number, cells)) or all(re.search("[0-9]", cell) for cell in cells)


def choose_titles(names: Sequence[str], where: str) -> tuple[str, str]:
    """Choose the columns with ids and titles among ``names``.

    Raises
    ------
    BadInput
        There is no column with titles; the message names ``where``.
    """
    item = _by_name(names, (*ITEM_NAMES, "id"), taken=set()) or names[0]
    title = _by_name(names, TITLE_NAMES, taken={item}) or next((name for name in names if name != item), None)
    if title is None:
        raise BadInput(f"{where}: no column with titles; it has {', '.join(names)}", public="no such column")
    return item, title


def choose_attributes(names: Sequence[str], item: str, title: str) -> list[str]:
    """The columns of a table of items that describe them: all but the ids, and the titles where their name says so."""
    titles = _by_name(names, TITLE_NAMES, taken={item})
    return [name for name in names if name not in (item, title if title == titles else None)]


def named_column(names: Sequence[str], what: str) -> str | None:
    """The column that is named like ids of a ``"user"`` or an ``"item"``, or just ``id``; ``None``: there is none."""
    usual = {"user": USER_NAMES, "item": ITEM_NAMES}.get(what, ())
    return _by_name(names, (*usual, "id"), taken=set())


def _by_name(names: Sequence[str], usual: Sequence[str], taken: set[str | None]) -> str | None:
    """The first of some usual names among the columns, without regard to case and punctuation."""
    # A type may stand behind a colon: ``user_id:token``.
    plain = {
        re.sub(r"[^a-z0-9]", "", name.lower().partition(":")[0]): name for name in reversed(names) if name not in taken
    }
    return next((plain[name] for name in usual if name in plain), None)


def is_number(text: str) -> bool:
    """True if the text is a number, and so hardly the name of a column."""
    try:
        float(text)
    except ValueError:
        return False
    return True
