"""Exit codes of the commands, and the exceptions that ``common.cli.main`` turns into them."""

import errno
import re
from collections.abc import Sequence
from typing import Any

from common.terminal import escaped

EXIT_OK = 0
EXIT_UNFORESEEN = 1
EXIT_USAGE = 2
EXIT_DOES_NOT_FIT = 3
EXIT_BAD_INPUT = 4
EXIT_INTERRUPTED = 130


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM_TEXT = re.compile(r"No space left|File too large|quota exceeded|\d+ requested and \d+ written", re.IGNORECASE)
"""Messages of NumPy and Arrow, which have no error number."""


def lacks_room(error: BaseException) -> bool:
    """Return True if writing a file failed because the disk is full, or its size or the user's quota is limited.

    Examples
    --------
    >>> lacks_room(OSError(errno.ENOSPC, "No space left on device")), lacks_room(OSError(errno.EACCES, "denied"))
    (True, False)
    """
    return isinstance(error, OSError) and (error.errno in _NO_ROOM or bool(_NO_ROOM_TEXT.search(str(error))))


class UsageError(ValueError):
    """The command line is wrong (exit 2); the message says what was given and what is accepted."""

    def __init__(self, message: str) -> None:
        super().__init__(escaped(message))


class BadInput(ValueError):
    """An input is wrong (exit 4); the message is one line that says what, where, and what to do.

    Parameters
    ----------
    message
        The line on the terminal; it may have the user's own path.
    public
        The same without paths or identifiers, for records and log files; ``None`` for a general text.
    """

    def __init__(self, message: str, *, public: str | None = None) -> None:
        super().__init__(escaped(message))
        self.public = public if public is not None else "an input could not be used"


class DoesNotFit(Exception):
    """No setting fits under the ceiling (exit 3).

    Parameters
    ----------
    message
        One line; ``common.memory.plan.explain.refusal_text`` makes the full text from the attributes.
    ceiling
        The ceiling in bytes.
    smallest
        The plan that needs least (``common.memory.plan.plan.Plan``); ``None`` if nothing could be priced.
    reasons
        Why settings could not be priced.
    remedies
        Changes of the command line that would fit.
    """

    def __init__(
        self,
        message: str = "does not fit under the ceiling",
        *,
        ceiling: int,
        smallest: Any = None,
        reasons: Sequence[str] = (),
        remedies: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.ceiling, self.smallest = ceiling, smallest
        self.reasons, self.remedies = tuple(reasons), tuple(remedies)

    @property
    def smallest_feasible_bytes(self) -> int | None:
        """The smallest ceiling under which the command runs, rounded up; ``None`` if nothing could be priced."""
        return None if self.smallest is None else int(self.smallest.feasible_bytes)
