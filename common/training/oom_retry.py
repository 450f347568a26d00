"""Going on after a failed allocation: whatever can be repeated is tried, told apart from other errors, and released.

The exception's traceback keeps every tensor of the failed work alive, so recovery starts only after the ``except``
block, with the traceback gone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from common.memory.process.guard import is_out_of_memory, release

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Failure:
    """An allocation that failed; pins nothing of the work that wanted it."""

    error: Exception


def attempt(work: Callable[[], Result]) -> Result | Failure:
    """Do ``work``; an allocation failure is returned, after its memory went back, and any other error raised."""
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
    """Do ``work``, and once more if an allocation fails: what the heap kept, or others held for a moment, may be gone.

    Parameters
    ----------
    work
        Something that may be done again from its start.

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
