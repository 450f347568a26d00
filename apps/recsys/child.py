"""Run a function in a child process that ends afterwards, so that all it held goes back to the system.

Millions of small strings leave an interpreter's heap in pieces that it keeps (39 MiB after half a million ids); what
comes after reading should not pay for that.
"""

import ctypes
import os
import pickle
import signal
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")
_PR_SET_PDEATHSIG = 1


class ChildKilled(Exception):
    """The child ended without an answer; the message says by which signal."""


def run(function: Callable[[], Answer]) -> Answer:
    """Call ``function`` in a fork of this process and return what it returns.

    The child dies with its parent. Both are small when this is called: what the function imports stays with it.

    Raises
    ------
    ChildKilled
        If it was killed.
    BaseException
        Whatever the function raised.
    """
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        _answer(function, send)
    os.close(send)
    try:
        with open(receive, "rb") as stream:
            answer = stream.read()
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(pid, 0)
    if not answer:
        raise ChildKilled(f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "no answer")
    failed, value = pickle.loads(answer)
    if failed:
        raise value
    result: Answer = value
    return result


def _answer(function: Callable[[], Answer], send: int) -> None:
    """The child's whole life; it must not run the parent's clean-up."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            answer = pickle.dumps((False, function()))
        except BaseException as error:
            answer = _pickled(error)
        with open(send, "wb") as stream:
            stream.write(answer)
    finally:
        os._exit(0)


def _pickled(error: BaseException) -> bytes:
    """An exception as bytes; one that does not survive it becomes a RuntimeError with its text."""
    try:
        answer = pickle.dumps((True, error))
        pickle.loads(answer)
    except Exception:
        return pickle.dumps((True, RuntimeError(f"{type(error).__name__}: {error}")))
    return answer
