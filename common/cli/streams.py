"""Standard streams that are closed, full, or whose reader has gone."""

import fcntl
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

from common.errors import EXIT_OK
from common.terminal import escaped


def repair() -> None:
    """Open ``/dev/null`` in the place of each standard stream that this process was started without.

    Otherwise the next file that is opened gets the stream's number, and is written to by what is printed.
    """
    for number in (0, 1, 2):
        if not _usable(number):
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null != number:
                os.close(null)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            stream = open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _usable(number: int) -> bool:
    """False if a stream is closed, or has been taken by a file to read: a shell's or Python's own script."""
    try:
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        return False
    return number == 0 or mode != os.O_RDONLY


def say(line: str) -> None:
    """Write a line on stderr; control characters in it, which may come from data, are shown and not obeyed."""
    with suppress(BrokenPipeError):
        sys.stderr.write("\n".join(map(escaped, line.split("\n"))) + "\n")


_broken: list[OSError] = []
"""The errors of writing on stdout that ``flush`` returns."""


def write(text: str) -> None:
    """Write on stdout; an error is kept for ``flush``, and nothing more is written after it."""
    try:
        sys.stdout.write(text)
    except OSError as error:
        silence(sys.stdout)
        _broken.append(error)


def write_json(record: Mapping[str, Any]) -> None:
    """Write a record on stdout, piece by piece: its text as a whole may be large."""
    for piece in json.JSONEncoder().iterencode(record):
        write(piece)
    write("\n")


def flush() -> OSError | None:
    """Write out what is buffered; returns what went wrong since the start of the process.

    A reader that has gone (``recsys recommend ... | head -1``) is nothing that went wrong.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            silence(stream)
            _broken.append(error)
    return next((error for error in _broken if not isinstance(error, BrokenPipeError)), None)


def silence(stream: TextIO) -> int:
    """Send a stream to ``/dev/null`` from now on, with what it has buffered; returns 0, the exit code of success."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
    return EXIT_OK
