"""The baseline model: every user gets the most popular items, of all time or of the last hours, days or weeks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import History, NpyReader
from apps.recsys.data.splits import Kept
from apps.recsys.models.top_k import best_of_blocks
from common.errors import BadInput, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


ALL = "all"
"""Window without a bound."""
HYPER: Mapping[str, Any] = {"window": ALL}
"""Hyper-parameters with their defaults."""
UNITS = {"h": 3600, "d": 86_400, "w": 604_800}
"""Units of a window, in seconds."""
SCALES = ((1e17, 1e9, "nanoseconds"), (1e14, 1e6, "microseconds"), (1e11, 1e3, "milliseconds"))
"""Times from so large a number on are not seconds since 1970, which would be the year 5138; how many make a second."""
MOST_BLOCK = 1 << 16
"""Items among which the most popular ones are found at a time."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def window_of(kind: str, hyper: Mapping[str, Any]) -> str:
    """The window of a model; ``all`` for models of another kind, and for those made before there were windows."""
    return str(hyper.get("window", ALL)) if kind == "popularity" else ALL


def window_seconds(window: str) -> float | None:
    """Length of a window in seconds; ``None`` for all time.

    Raises
    ------
    UsageError
        It is neither ``all`` nor a positive number with a unit.

    Examples
    --------
    >>> window_seconds("7d"), window_seconds("1.5h"), window_seconds("all")
    (604800.0, 5400.0, None)
    """
    if window == ALL:
        return None
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([hdw])", window, re.ASCII)
    if match is None or not float(match[1]):
        raise UsageError(
            f"--set window={window}: expected all, or a number of hours, days or weeks, such as 12h, 7d or 2w"
        )
    return float(match[1]) * UNITS[match[2]]


def fit_window(
    history: History, kept: Kept, times: NpyReader, window: float, *, items: int, say: Callable[[str], object]
) -> NDArray[np.float32]:
    """Share of the users that had each item in a window, which ends with the newest interaction that is trained on.

    Parameters
    ----------
    history, kept, items
        As for ``fit``.
    times
        Time of the last of a user's interactions with an item, in the order of ``history``: seconds since 1970, or
        thousandths, millionths or billionths of seconds, which the newest one tells (``SCALES``).
    window
        Length in seconds. The time at its beginning belongs to it.
    say
        Called with a line about the window.

    Returns
    -------
    NDArray
        As of ``fit``.

    Raises
    ------
    BadInput
        A time is infinite.
    """
    import numpy as np

    def part(start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        mask = kept.mask(start, stop)
        when = times[slice(int(history.indptr[start]), int(history.indptr[stop]))]
        return history.items(start, stop)[mask], when[mask]

    newest, trained = -np.inf, 0
    for start, stop in history.blocks():
        _, when = part(start, stop)
        newest, trained = max(newest, float(when.max(initial=-np.inf))), trained + len(when)
    if not np.isfinite(newest):
        raise BadInput(f"--set window: the newest time is {newest}", public="time out of range")
    scale, unit = next(((scale, f" (times are {unit})") for least, scale, unit in SCALES if newest >= least), (1.0, ""))
    first, recent, counts = newest - window * scale, 0, np.zeros(items, np.int64)
    for start, stop in history.blocks():
        rows, when = part(start, stop)
        rows = rows[when >= first]
        recent += len(rows)
        counts += np.bincount(rows, minlength=items)
    say(
        f"window: {recent:,} of {trained:,} interactions are counted, from {_date(first / scale)} to"
        f" {_date(newest / scale)}{unit}"
    )
    return (counts / history.rows).astype(np.float32)[:, None]


def _date(seconds: float) -> str:
    """A time as ISO 8601 writes it, to the minute; the number where no year has it."""
    try:
        return (_EPOCH + timedelta(seconds=seconds)).isoformat(" ", "minutes").removesuffix("+00:00")
    except OverflowError:
        return f"{seconds:g}"


def fit(history: History, kept: Kept, *, items: int) -> NDArray[np.float32]:
    """Share of the users that had each item.

    Parameters
    ----------
    history
        All interactions.
    kept
        The interactions that are trained on.
    items
        Number of items.

    Returns
    -------
    NDArray
        One factor per item, shape (items, 1); the vector of every user is 1.
    """
    import numpy as np

    return (trained_counts(history, kept, items=items) / history.rows).astype(np.float32)[:, None]


def trained_counts(history: History, kept: Kept, *, items: int) -> NDArray[np.int64]:
    """Number of users that had each item, of the interactions that are trained on: shape (items,)."""
    import numpy as np

    counts = np.zeros(items, np.int64)
    for start, stop in history.blocks():
        counts += np.bincount(history.items(start, stop)[kept.mask(start, stop)], minlength=items)
    return counts


def counts(history: History, *, items: int) -> NDArray[np.int32]:
    """Number of users that had each item, in all of a model's history: shape (items,)."""
    import numpy as np

    numbers = np.zeros(items, np.int32)
    for start, stop in history.blocks():
        np.add.at(numbers, history.items(start, stop), 1)
    return numbers


def numbers(history: History, *, items: int, shares: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Number of users that had each item, as popularity is shown: shape (items,).

    Parameters
    ----------
    history
        All interactions.
    items
        Number of items of the model.
    shares
        Shares of the users, as ``fit_window`` computes them; ``None``: all of the history counts.
    """
    import numpy as np

    if shares is None:
        whole = counts(history, items=items)
        found: NDArray[np.float32] = whole.view(np.float32)
        for start in range(0, items, MOST_BLOCK):  # in place
            found[start : start + MOST_BLOCK] = whole[start : start + MOST_BLOCK].astype(np.float32)
        return found
    rounded: NDArray[np.float32] = np.rint(shares * np.float32(history.rows))
    return rounded


def most(numbers: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None) -> list[tuple[int, float]]:
    """The items that most users had: what is shown to a user without a history.

    Parameters
    ----------
    numbers
        Users of each item, shape (items,).
    k
        Number of items.
    allowed
        Mask of items that may be recommended, shape (items,); ``None``: all.

    Returns
    -------
    list
        Row and number of users of each item, the largest first; of equal numbers the lower row first.
    """
    import numpy as np

    def blocks() -> Iterator[tuple[int, NDArray[np.float32]]]:
        for start in range(0, len(numbers), MOST_BLOCK):
            span = slice(start, start + MOST_BLOCK)
            some = numbers[span]
            yield start, some if allowed is None else np.where(allowed[span], some, np.float32(-np.inf))

    return best_of_blocks(blocks(), k)
