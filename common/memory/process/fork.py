"""Run a function in a copy of this process that ends afterwards, so that all its memory goes back to the system.

Millions of small strings leave an interpreter's heap in pieces that it keeps (39 MiB after half a million ids). A
command that reads its input in a fork does not carry those through its later phases.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from common.errors import EXIT_OK, EXIT_UNFORESEEN, BadInput
from common.memory.process import child, guard
from common.memory.process.meter import resident

SIGNAL_SECONDS = 0.1
"""Time within which a signal to the whole process group has reached this process too."""


def run(function: Callable[[], dict[str, Any]], *, ceiling: int | None = None, threads: int = 1) -> dict[str, Any]:
    """Call ``function`` in a fork of this process and return what it returns, by way of JSON.

    The child dies with its parent and leaves SIGINT to it. The parent should be small: what the function imports stays
    with the child.

    Parameters
    ----------
    function
        Returns a dictionary of what JSON can hold.
    ceiling
        Bytes that the child, this process and the supervisor may hold together; ``None``: as many as this process.
    threads
        How many threads it will compute with.

    Raises
    ------
    BadInput
        As the function raised it.
    MemoryError
        If the child ran out of memory, or the kernel killed it for its memory.
    ChildFailed
        If the function raised anything else, or the child ended without an answer: by a signal or an exit code.
    """
    kills = child.oom_kills()
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        _be_the_child(function, send, ceiling=ceiling, threads=threads)
    os.close(send)
    try:
        with open(receive, "rb") as stream:
            text = stream.read()
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(pid, 0)
    ended = child.read_exit(os.waitstatus_to_exitcode(status), kills_before=kills)
    if ended.status != EXIT_OK or not text:
        raise _no_answer(ended)
    answer: dict[str, Any] = json.loads(text)
    if "memory" in answer:
        raise MemoryError(answer["memory"])
    if "input" in answer:
        raise BadInput(answer["input"], public=answer["public"])
    if "failure" in answer:
        raise child.ChildFailed(answer["failure"])
    result: dict[str, Any] = answer["result"]
    return result


def _no_answer(ended: child.ChildExit) -> Exception:
    """What to raise for a child that ended without an answer."""
    if ended.status == -signal.SIGTERM:
        time.sleep(SIGNAL_SECONDS)  # the signal may be meant for the whole group: then this process's handler answers
    kind = MemoryError if ended.out_of_memory else child.ChildFailed
    return kind(f"a child process {ended}")


def _be_the_child(function: Callable[[], dict[str, Any]], send: int, *, ceiling: int | None, threads: int) -> None:
    """The child's whole life; it must not run the parent's clean-up."""
    code = EXIT_UNFORESEEN
    try:
        child.die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if ceiling is not None:
            guard.soft_wall(ceiling - guard.SUPERVISOR_BYTES - resident(), threads=threads)
        text = _outcome(function)
        with open(send, "w", encoding="utf-8") as stream:
            stream.write(text)
        code = EXIT_OK
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else EXIT_UNFORESEEN
    finally:
        os._exit(code)


def _outcome(function: Callable[[], dict[str, Any]]) -> str:
    """What the function returned or raised, as JSON."""
    try:
        return json.dumps({"result": function()})
    except BadInput as error:
        return json.dumps({"input": str(error), "public": error.public})
    except Exception as error:
        kind = "memory" if guard.is_out_of_memory(error) else "failure"
        return json.dumps({kind: f"{type(error).__name__}: {error}"})
