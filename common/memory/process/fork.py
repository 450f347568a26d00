"""Run a function in a child process that ends afterwards, so that all it held goes back to the system.

Millions of small strings leave an interpreter's heap in pieces that it keeps (39 MiB after half a million ids); what
comes after reading should not pay for that.
"""

import ctypes
import json
import os
import signal
from collections.abc import Callable
from typing import Any

from common.errors import BadInput
from common.memory.costs.floor import SUPERVISOR_BYTES
from common.memory.process import guard
from common.memory.process.meter import resident

_PR_SET_PDEATHSIG = 1


def run(function: Callable[[], dict[str, Any]], *, ceiling: int | None = None, threads: int = 1) -> dict[str, Any]:
    """Call ``function`` in a fork of this process and return what it returns, by way of JSON.

    The child dies with its parent. The parent should be small: what the function imports stays with the child.

    Parameters
    ----------
    ceiling
        Bytes that the child, this process and the supervisor may hold together; ``None``: as many as this process.
    threads
        How many threads it will compute with.

    Raises
    ------
    BadInput
        As the function raised it.
    MemoryError
        If the child ran out of memory, or the kernel killed it.
    RuntimeError
        Any other failure, in words.
    """
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        if ceiling is not None:
            guard.soft_wall(ceiling - SUPERVISOR_BYTES - resident(), threads=threads)
        _answer(function, send)
    os.close(send)
    try:
        with open(receive, "rb") as stream:
            text = stream.read()
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.waitpid(pid, 0)
    answer: dict[str, Any] = json.loads(text) if text else {"memory": "killed"}
    if "memory" in answer:
        raise MemoryError(answer["memory"])
    if "input" in answer:
        raise BadInput(answer["input"], public=answer["public"])
    if "failure" in answer:
        raise RuntimeError(answer["failure"])
    result: dict[str, Any] = answer["result"]
    return result


def _answer(function: Callable[[], dict[str, Any]], send: int) -> None:
    """The child's whole life; it must not run the parent's clean-up."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with open(send, "w", encoding="utf-8") as stream:
            json.dump(_outcome(function), stream)
    finally:
        os._exit(0)


def _outcome(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"result": function()}
    except BadInput as error:
        return {"input": str(error), "public": error.public}
    except Exception as error:
        kind = "memory" if guard.is_out_of_memory(error) else "failure"
        return {kind: f"{type(error).__name__}: {error}"}
