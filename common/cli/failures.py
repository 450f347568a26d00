"""Endings that no command foresees: a full disk, memory that ran out, or a defect."""

import argparse
import errno
import os
import traceback
from contextlib import suppress
from pathlib import Path

from common.errors import EXIT_UNFORESEEN, EXIT_USAGE
from common.files import no_room
from common.memory.costs.store import cache_directory
from common.memory.process import guard

FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Reasons for which a place cannot be written."""


def describe(error: Exception, args: argparse.Namespace) -> tuple[int, str, dict[str, str]]:
    """Describe an exception for the terminal and for the record.

    Parameters
    ----------
    error
        The exception that is being handled.
    args
        The command line: ``output`` is where the command writes, if it is a path; with ``verbose`` the traceback is
        printed, else it is kept in the log.

    Returns
    -------
    tuple
        An exit code, a line, and the record's ``error`` without paths or identifiers.
    """
    output = getattr(args, "output", None)
    place = output if isinstance(output, Path) else None
    if line := no_room(error, place):
        return EXIT_UNFORESEEN, line, {"kind": "disk full", "message": "no room for a file"}
    if place is not None and _is_forbidden(error, place):
        what = f"cannot be written: {error.strerror}"  # type: ignore[attr-defined]
        return EXIT_USAGE, f"-o {output}: {what}; choose another place", {"kind": "usage", "message": f"-o {what}"}
    kind = "out of memory" if guard.is_out_of_memory(error) else type(error).__name__
    return EXIT_UNFORESEEN, _with_traceback(error, verbose=args.verbose), {"kind": kind, "message": "see the log"}


def _is_forbidden(error: Exception, output: Path) -> bool:
    """True if writing to the output, or beside it, was not allowed."""
    if not isinstance(error, OSError) or error.errno not in FORBIDDEN or not isinstance(error.filename, str | bytes):
        return False
    path, output = Path(os.fsdecode(error.filename)).absolute(), output.absolute()
    beside = (output, output.parent)
    return path in (*beside, *output.parents) or any(one in path.parents for one in beside)


def _with_traceback(error: Exception, *, verbose: bool) -> str:
    """Print the traceback, or keep it in a file that the line names."""
    if verbose:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    path = cache_directory().parent / "error.log"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            traceback.print_exc(file=stream)
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} (traceback in {path})"
