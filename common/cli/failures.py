"""Endings that no command foresees: a full disk, memory that ran out, or a defect."""

import os
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.files import no_room
from common.memory.costs.store import cache_directory
from common.memory.process import guard


def describe(error: Exception, output: Any, *, verbose: bool) -> tuple[str, dict[str, str]]:
    """Describe an exception for the terminal and for the record.

    Parameters
    ----------
    error
        The exception that is being handled.
    output
        Value of the option ``-o``: the path where a command writes, if it is one.
    verbose
        True to print the traceback; False to keep it in the log.

    Returns
    -------
    tuple
        A line, and the record's ``error`` without paths or identifiers.
    """
    if line := no_room(error, output if isinstance(output, Path) else None):
        return line, {"kind": "disk full", "message": "no room for a file"}
    kind = "out of memory" if guard.is_out_of_memory(error) else type(error).__name__
    return _with_traceback(error, verbose=verbose), {"kind": kind, "message": "see the log"}


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
