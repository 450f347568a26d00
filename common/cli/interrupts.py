"""Signals that ask a command to stop: Ctrl-C counts once, and no traceback is printed for it.

A terminal sends SIGINT to the whole process group: to the command, and to its supervisor, which passes it on. The
command receives it twice. If the copy counted as the user's second Ctrl-C, it would interrupt the checkpoint that the
first one asked for.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import EXIT_INTERRUPTED

COPY_SECONDS = 0.5
"""Time within which a second signal of the same number is taken for a copy of the first."""

_counted: dict[int, float] = {}
"""Time of the last signal that was not a copy, by number."""


def is_copy(number: int) -> bool:
    """True if a signal that has just arrived is a copy of the one before; otherwise its time is recorded."""
    now = time.monotonic()
    if now - _counted.get(number, -COPY_SECONDS) < COPY_SECONDS:
        return True
    _counted[number] = now
    return False


def interrupt(number: int, _frame: object) -> None:
    """Raise ``KeyboardInterrupt`` unless the signal is a copy: a handler for SIGINT and SIGTERM."""
    if not is_copy(number):
        raise KeyboardInterrupt


def handle() -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise ``KeyboardInterrupt``, once each; one that is ignored stays ignored.

    A shell's background jobs ignore SIGINT, and those of ``nohup`` SIGHUP.
    """
    signal.signal(signal.SIGTERM, interrupt)
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def ignore() -> None:
    """Ignore SIGINT and SIGTERM from now on: the launcher ends all ranks of which one has ended, and this one has still
    to say why, or to remove its scratch folder."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def quiet() -> Iterator[None]:
    """A block that ends with exit code 130 and without a traceback when it is interrupted.

    Raises
    ------
    SystemExit
        With code 130, after ``KeyboardInterrupt``.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None
