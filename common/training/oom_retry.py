"""Recovery from failed allocations: detect them, release memory, and repeat the work.

The exception's traceback keeps every tensor of the failed work alive. Recovery therefore starts after the ``except``
block, when the traceback is gone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from common.memory.process.guard import is_out_of_memory, release

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed allocation; it keeps nothing of the failed work alive."""

    error: Exception


def attempt(work: Callable[[], Result]) -> Result | Failure:
    """Do ``work``; after a failed allocation release memory and return the failure. Other errors are raised."""
    try:
        return work()
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        failure = Failure(error)
    failure.error.__traceback__ = failure.error.__context__ = failure.error.__cause__ = None
    release()
    return failure


def repeated(work: Callable[[], Result]) -> Result:
    """Do ``work``, and repeat it once if an allocation fails, after releasing memory.

    Parameters
    ----------
    work
        A function that can be repeated from its start.

    Raises
    ------
    RuntimeError, MemoryError, OSError
        The second failure.
    """
    done = attempt(work)
    if isinstance(done, Failure):
        done = attempt(work)
    if isinstance(done, Failure):
        raise done.error
    return done
