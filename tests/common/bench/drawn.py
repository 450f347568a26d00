"""What the random commands of a test run share: six sessions, drawn anew for each commit."""

from common.bench.harness import current_commit
from tests.machine import patience

SESSIONS = {"recsys": 4, "imaging": 2}
"""Sessions of each application; one of ``imaging`` takes as long as two of ``recsys``."""


def seed() -> int:
    """Return a number that is the same for a commit; 0 outside a checkout."""
    try:
        return int(current_commit().partition("-")[0], 16) % 1_000_000
    except ValueError:
        return 0


def seconds(quiet: float) -> float:
    """Return the time after which no further session begins: ``quiet`` on a quiet machine."""
    return patience(quiet)
