"""Read the files of ids of a question before it is planned, in a child process that returns their memory."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from apps.recsys.planning.answer import NAMED_BYTES
from common.errors import BadInput, DoesNotFit
from common.memory.process import fork
from common.memory.process.budget import MemoryBudget


def read_ids(path: Path, what: str, option: str, budget: MemoryBudget, threads: int) -> tuple[str, ...]:
    """The ids of a file, each once, in their order.

    Parameters
    ----------
    path
        A file that ``id_files.ids`` reads.
    what
        ``"user"`` or ``"item"``.
    option
        Name of the option, for messages.
    budget
        The ceiling.
    threads
        Threads of the command.

    Raises
    ------
    BadInput
        As ``id_files.ids``, or there is no id.
    DoesNotFit
        The ids alone need more than the ceiling.
    """
    most = budget.host_bytes // NAMED_BYTES

    def read() -> dict[str, Any]:
        from apps.recsys.data.questions import id_files

        named = id_files.ids(path, what)
        return {"ids": list(dict.fromkeys(islice(named, most))), "more": next(named, None) is not None}

    too_many = DoesNotFit(ceiling=budget.host_bytes, reasons=[f"the ids of {option} {path} alone need more"])
    try:
        found = fork.run(read, ceiling=budget.host_bytes, threads=threads)
    except MemoryError:
        raise too_many from None
    if found["more"]:
        raise too_many
    if not (ids := tuple(found["ids"])):
        raise BadInput(f"{option} {path}: no id", public="no ids")
    return ids
