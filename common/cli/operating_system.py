"""The operating system that the command lines run on."""

import sys

from common.errors import EXIT_USAGE


def require_linux(program: str) -> None:
    """Exit with code 2 and one line unless this is Linux.

    A ceiling is measured in ``/proc`` and kept by Linux's own limits. The console scripts call this before they import
    anything else of peakline: other systems lack some of the modules that it imports.

    Parameters
    ----------
    program
        Name in the message, ``"recsys"``.

    Raises
    ------
    SystemExit
        On any other system.
    """
    if sys.platform != "linux":
        sys.stderr.write(f"{program}: peakline runs on Linux only, not on {sys.platform}\n")
        raise SystemExit(EXIT_USAGE)
