"""How much of a server's log of feedback a model contains, and the rest of the log as an input of ``recsys update``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.files import scratch_directory

BLOCK = 1 << 20
"""Bytes read at a time."""


def folded_bytes(log: int, folded: Mapping[str, Any] | None) -> int:
    """Bytes at the beginning of a log that a model contains.

    Parameters
    ----------
    log
        The open file.
    folded
        What ``model.json`` says of the log that was added to it: ``bytes`` and their ``sha256``; ``None``: nothing.

    Returns
    -------
    int
        0 if it was another log.
    """
    if not folded or os.fstat(log).st_size < folded["bytes"]:
        return 0
    return int(folded["bytes"]) if _digest(log, folded["bytes"]) == folded["sha256"] else 0


@contextmanager
def snapshot(path: Path | None, output: Path, folded: Mapping[str, Any] | None) -> Iterator[tuple[Path | None, Any]]:
    """Copy the events of a log that a model does not contain, of which a server may still be writing more.

    Parameters
    ----------
    path
        The log; ``None``: there is none.
    output
        The copy is made next to it.
    folded
        As in ``folded_bytes``.

    Yields
    ------
    tuple
        The copy, ``None`` if there is nothing new, and what the new model's ``model.json`` says.

    Raises
    ------
    BadInput
        The log cannot be read.
    """
    if path is None:
        yield None, folded
        return
    try:
        log = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BadInput(f"--feedback {path}: {error.strerror}", public="the feedback log cannot be read") from None
    try:
        start, end = folded_bytes(log, folded), _last_line(log)
        if end <= start:
            yield None, folded
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        with scratch_directory(output.parent, "feedback") as folder:
            copy = folder / "feedback.jsonl"
            with copy.open("wb") as stream, open(log, "rb", closefd=False) as source:
                source.seek(start)
                for at in range(start, end, BLOCK):
                    stream.write(source.read(min(BLOCK, end - at)))
            yield copy, {"bytes": end, "sha256": _digest(log, end)}
    finally:
        os.close(log)


def _last_line(log: int) -> int:
    """Number of bytes up to the end of the last whole line."""
    size = os.fstat(log).st_size
    for start in range((size - 1) // BLOCK * BLOCK, -1, -BLOCK):
        part = os.pread(log, min(BLOCK, size - start), start)
        if b"\n" in part:
            return start + part.rindex(b"\n") + 1
    return 0


def _digest(log: int, size: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, size, BLOCK):
        digest.update(os.pread(log, min(BLOCK, size - start), start))
    return digest.hexdigest()
