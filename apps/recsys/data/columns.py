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
        No such column, one column only, or names that are all numbers.
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
    if user is None and item is None and all(is_number(name.strip()) for name in names):
        first = delimiter.join(names)
        raise BadInput(f"{where}: the first line is data ({first}); put column names above it", public="no header")
    rest = [name for name in names if name not in (user, item)]
    user = user or rest.pop(0)
    item = item or rest.pop(0)
    value = wanted.value or _by_name(names, VALUE_NAMES, taken={user, item})
    time = wanted.time or _by_name(names, TIME_NAMES, taken={user, item, value})
    return Columns(user, item, value, time)


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


def _by_name(names: Sequence[str], usual: Sequence[str], taken: set[str | None]) -> str | None:
    """The first of some usual names among the columns, without regard to case and punctuation."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(names) if name not in taken}
    return next((plain[name] for name in usual if name in plain), None)


def is_number(text: str) -> bool:
    """True if the text is a number, and so hardly the name of a column."""
    try:
        float(text)
    except ValueError:
        return False
    return True
