"""Run a function in a fork of this process, so that all memory it used is returned when it ends.

Millions of small strings fragment the interpreter's heap, which then keeps 39 MiB after half a million ids. A command
that reads its input in a fork does not keep that memory through its later phases.
"""

import errno
import gc
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from common.errors import EXIT_OK, EXIT_UNFORESEEN, BadInput, lacks_room
from common.memory.process import child, guard, meter
from common.memory.process.meter import resident

SIGNAL_SECONDS = 0.1
"""Time in which a signal to the whole process group reaches this process too."""


def run(function: Callable[[], dict[str, Any]], *, ceiling: int | None = None, threads: int = 1) -> dict[str, Any]:
    """Call a function in a fork of this process and return its result, which is passed on as JSON.

    The child ends with its parent and ignores SIGINT, which the parent handles. The function should import libraries
    itself, so that the parent stays small.

    Parameters
    ----------
    function
        Returns a dictionary that JSON can represent.
    ceiling
        Bytes for the child, this process and the supervisor together; ``None`` to keep this process's own wall.
    threads
        Number of threads that the function computes with.

    Raises
    ------
    BadInput
        If the function raised it.
    MemoryError
        If the child ran out of memory or the kernel killed it for its memory.
    OSError
        If a file could not be written for want of room.
    ChildFailed
        If the function raised another exception, or the child ended by a signal or by an exit code other than 0.
    """
    kills = child.oom_kills()
    receive, send = os.pipe()
    stay, leave = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        os.close(leave)
        _be_the_child(function, send, stay, ceiling=ceiling, threads=threads)
    os.close(send)
    os.close(stay)
    try:
        with open(receive, "rb") as stream, open(leave, "wb"):
            text = stream.read()
            meter.record_fork(pid)  # it stays until ``leave`` is closed, so that both can be measured
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
    if "room" in answer:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), answer["room"])
    if "failure" in answer:
        raise child.ChildFailed(answer["failure"])
    result: dict[str, Any] = answer["result"]
    return result


def _no_answer(ended: child.ChildExit) -> Exception:
    """Return the exception for a child that ended without an answer."""
    if ended.status == -signal.SIGTERM:
        time.sleep(SIGNAL_SECONDS)  # if the signal went to the whole group, this process's own handler now runs
    kind = MemoryError if ended.out_of_memory else child.ChildFailed
    return kind(f"a child process {ended}")


def _be_the_child(
    function: Callable[[], dict[str, Any]], send: int, stay: int, *, ceiling: int | None, threads: int
) -> None:
    """Run the function and end this process without the parent's clean-up, once the parent has measured it."""
    code = EXIT_UNFORESEEN
    try:
        gc.freeze()  # a collection would write to the parent's objects, and so copy 7 MiB of pages if torch is loaded
        child.die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if ceiling is not None:
            guard.soft_wall(ceiling - guard.SUPERVISOR_BYTES - resident(), threads=threads)
        text = _outcome(function)
        with open(send, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.read(stay, 1)
        code = EXIT_OK
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else EXIT_UNFORESEEN
    finally:
        os._exit(code)


def _outcome(function: Callable[[], dict[str, Any]]) -> str:
    """Return the function's result or its exception as JSON."""
    try:
        return json.dumps({"result": function()})
    except BadInput as error:
        return json.dumps({"input": str(error), "public": error.public})
    except Exception as error:
        if lacks_room(error):
            return json.dumps({"room": str(getattr(error, "filename", None) or "")})
        kind = "memory" if guard.is_out_of_memory(error) else "failure"
        return json.dumps({kind: f"{type(error).__name__}: {error}"})
