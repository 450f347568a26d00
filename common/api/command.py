"""Run a command of peakline for a Python caller: its record as a value, its other endings as exceptions.

The command is the one that a shell would start, in a child with its own ceiling. Memory of the caller's process
does not count against that ceiling.
"""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.errors import (
    EXIT_BAD_INPUT,
    EXIT_DOES_NOT_FIT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    BadInput,
    DoesNotFit,
    UsageError,
)
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Plan
from common.memory.process import child
from common.memory.process.budget import BudgetError, MemoryBudget

log = logging.getLogger("peakline.api")


def budget_of(memory: str | int) -> MemoryBudget:
    """The ceiling that is meant by bytes, or by text as ``--memory`` takes it.

    Raises
    ------
    UsageError
        If it is neither a size nor ``"auto"``.
    """
    if isinstance(memory, bool) or not isinstance(memory, (str, int)):
        raise UsageError(f"{memory!r} is not a size: write bytes, or text such as '400MiB'")
    try:
        return MemoryBudget.parse(str(memory))
    except BudgetError as error:
        raise UsageError(str(error)) from None


def run(
    module: str, arguments: Sequence[object], *, memory: str | int, name: str, shown: Mapping[str, str]
) -> dict[str, Any]:
    """Run a command and return its record.

    A ceiling above the machine's memory is warned about. The command's lines on stderr are logged as they come, to
    ``peakline.api`` at level INFO. Ctrl-C ends it as Ctrl-C in a shell does; a second one kills it.

    Parameters
    ----------
    module
        ``"apps.recsys"`` or another whose ``__main__`` is a command line of ``common.cli.main``.
    arguments
        The command line, without ``--memory`` and ``--json``.
    memory
        Ceiling of the command's process tree: bytes, or text as ``--memory`` takes it.
    name
        ``"recsys train"``: what its lines on stderr begin with.
    shown
        Text to replace in messages: paths in scratch, by what the caller knows them as.

    Raises
    ------
    UsageError, BadInput, DoesNotFit
        As the command ended, with its own sentence.
    KeyboardInterrupt
        If it was interrupted.
    RuntimeError
        If it ended in any other way; the message names the log that holds the traceback.
    """
    if warning := budget_of(memory).warning:
        warnings.warn(warning, stacklevel=4)
    words = [*map(_word, arguments), "--memory", str(memory), "--json"]
    done = child.run_command(module, words, on_line=log.info)
    record = _record(done.stdout)
    if done.exit.status != EXIT_OK:
        _fail(done, record, name, shown)
    return record


def _word(argument: object) -> str:
    """A word of a command line; a path is never taken for an option."""
    text = str(argument)
    return f"./{text}" if isinstance(argument, Path) and text.startswith("-") else text


def _record(stdout: bytes) -> dict[str, Any]:
    """The last line that is a JSON object; empty where the command ended before there was one."""
    for line in reversed(stdout.decode("utf-8", "replace").splitlines()):
        if line.startswith("{"):
            record: dict[str, Any] = json.loads(line)
            return record
    return {}


def _fail(done: child.Finished, record: Mapping[str, Any], name: str, shown: Mapping[str, str]) -> NoReturn:
    sentence = _sentence(done.stderr.decode("utf-8", "replace"), name) or f"{name} {done.exit}"
    for text, instead in shown.items():
        sentence = sentence.replace(text, instead)
    if done.exit.status == EXIT_USAGE:
        raise UsageError(sentence)
    if done.exit.status == EXIT_BAD_INPUT:
        raise BadInput(sentence, public=record.get("error", {}).get("message"))
    if done.exit.status == EXIT_DOES_NOT_FIT:
        raise DoesNotFit(sentence, ceiling=record["budget"]["host_bytes"], smallest=_plan(record.get("plan")))
    if done.exit.status == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    raise RuntimeError(sentence)


def _plan(written: Mapping[str, Any] | None) -> Plan | None:
    """The plan of a record."""
    if written is None:
        return None
    terms = tuple(Term(**{**term, "phases": tuple(term["phases"])}) for term in written["terms"])
    return Plan(written["workload"], tuple(sorted(written["knobs"].items())), Footprint(terms))


def _sentence(stderr: str, name: str) -> str:
    """Return a command's closing message: from the last line that begins with its name to the end of stderr."""
    lines = stderr.splitlines()
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith(f"{name}: "):
            first = lines[number].removeprefix(f"{name}: ").removeprefix("error: ")
            return "\n".join([first, *lines[number + 1 :]]).strip()
    return ""
