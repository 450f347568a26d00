"""The log of feedback: JSON lines that are only appended to, and that ``recsys update`` reads as new interactions.

A line is written by one ``write`` and, unless told otherwise, is on the disk before it is answered. What a crash left
of a line is cut off at the next start. Several workers append to one log: each reads what others wrote before it
answers.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from apps.recsys.data.updates.feedback_log import folded_bytes
from common.errors import BadInput, UsageError, lacks_room

READ_BYTES = 64 << 10
"""Bytes read at a time."""
LONGEST_LINE = 4 << 10
"""Most bytes of a line."""
EVENT = "event"
"""Name of an event's own id in a line."""


class Event(NamedTuple):
    """A user had an item."""

    user: str
    item: str
    value: float
    time: float
    """Seconds since 1970."""
    id: str = ""
    """The sender's name for it, by which one that is sent again is known; empty: none."""


class NoRoom(Exception):
    """The log cannot be written: the disk is full."""


class Journal:
    """A log of feedback.

    Parameters
    ----------
    path
        The file, which is made if there is none.
    columns
        Names of the columns of the model's data: ``user``, ``item``, ``value``, ``time``. Without ``value`` every row
        counts 1.
    whole
        For users and items, whether ids are whole numbers.
    sync
        True to write to the disk before an event is answered.

    Raises
    ------
    BadInput
        The file cannot be opened, or is of another kind.
    """

    def __init__(
        self, path: Path, columns: Mapping[str, str | None], *, whole: tuple[bool, bool], sync: bool = True
    ) -> None:
        self._path, self._sync, self._whole = path, sync, whole
        self._user, self._item = columns["user"] or "user", columns["item"] or "item"
        self._value, self._time = columns["value"], columns["time"] or "time"
        self._at = 0
        """Bytes of the log that were read."""
        self._file = self._open()

    @property
    def has_values(self) -> bool:
        """True if events have values."""
        return self._value is not None

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BadInput(f"{self._path}: {error.strerror}", public="the feedback log cannot be opened") from None

    def reopen(self) -> None:
        """Open the file anew in a fork: a lock of the same open file would not keep its parent and siblings out."""
        os.close(self._file)
        self._file = self._open()

    def mend(self) -> int:
        """Cut off what a crash left of a line; returns the number of bytes that were cut.

        Raises
        ------
        BadInput
            The file is no log, of which nothing may be cut.
        """
        with self._locked():
            size, end = os.fstat(self._file).st_size, 0
            for start in range(max(0, (size - 1) // READ_BYTES * READ_BYTES), -1, -READ_BYTES):
                part = os.pread(self._file, READ_BYTES, start)
                if b"\n" in part:
                    end = start + part.rindex(b"\n") + 1
                    break
            if end < size:
                if end:
                    self._parsed(os.pread(self._file, LONGEST_LINE + 1, 0).partition(b"\n")[0])
                if os.pread(self._file, 1, end) not in (b"{", b"\0"):  # zeros are what a lost block of a disk leaves
                    raise self._damaged()
                os.ftruncate(self._file, end)
            return size - end

    def grown(self) -> bool:
        """True if there are events that were not read."""
        return os.fstat(self._file).st_size != self._at

    def rewind(self, folded: Mapping[str, Any] | None) -> None:
        """Read the log again, from the end of what a model contains (``feedback_log.folded_bytes``)."""
        self._at = folded_bytes(self._file, folded)

    def read(self) -> Iterator[Event]:
        """Yield the events that were not read before.

        Raises
        ------
        BadInput
            A line is none of a log of feedback with these columns; the message has its place.
        """
        if os.fstat(self._file).st_size < self._at:  # somebody else has cut it
            raise self._damaged()
        rest = b""
        while part := os.pread(self._file, READ_BYTES, self._at + len(rest)):
            lines = (rest + part).split(b"\n")
            rest = lines.pop()
            if len(rest) > LONGEST_LINE:
                raise self._damaged()
            for line in lines:
                event = self._parsed(line)
                self._at += len(line) + 1
                yield event

    @contextmanager
    def appending(self) -> Iterator[None]:
        """A block in which no other worker appends: read what is new, then append."""
        with self._locked():
            yield

    def append(self, events: Sequence[Event]) -> None:
        """Write events at the end, all or none, within ``appending`` and after reading.

        Raises
        ------
        NoRoom
            The disk is full.
        """
        text = b"".join(map(self._line, events))
        try:
            written = os.write(self._file, text)
            if written == len(text) and self._sync:
                os.fdatasync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._at)
            if lacks_room(error):
                raise NoRoom(error.strerror) from None
            raise
        if written < len(text):
            os.ftruncate(self._file, self._at)
            raise NoRoom("only a part could be written")
        self._at += len(text)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _line(self, event: Event) -> bytes:
        user: str | int = int(event.user) if self._whole[0] else event.user
        item: str | int = int(event.item) if self._whole[1] else event.item
        fields: dict[str, Any] = {self._user: user, self._item: item}
        if self._value is not None:
            fields[self._value] = event.value
        fields[self._time] = event.time
        if event.id:
            fields[EVENT] = event.id
        line = json.dumps(fields, ensure_ascii=False).encode() + b"\n"
        if len(line) > LONGEST_LINE:
            raise UsageError(f"an event takes {len(line):,} bytes; at most {LONGEST_LINE:,} are written")
        return line

    def _parsed(self, line: bytes) -> Event:
        try:
            fields = json.loads(line)
            value = 1.0 if self._value is None else float(fields[self._value])
            user, item, time = fields[self._user], fields[self._item], float(fields[self._time])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self._damaged() from None
        return Event(str(user), str(item), value, time, str(fields.get(EVENT, "")))

    def _damaged(self) -> BadInput:
        columns = ", ".join(name for name in (self._user, self._item, self._value, self._time) if name)
        return BadInput(
            f"{self._path}: not a log of feedback with {columns}, from byte {self._at:,} on",
            public="the feedback log is damaged",
        )
