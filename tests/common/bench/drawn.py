"""Six random sessions of each commit are judged by the tests; here is what both applications share."""

import time
from typing import Any

from hypothesis import strategies as st

from common.bench.harness import current_commit
from common.bench.random_commands import Campaign
from tests.machine import patience

SESSIONS = {"recsys": 4, "imaging": 2}
"""Sessions of each application; one of ``imaging`` takes as long as two of ``recsys``."""
SECONDS = 40
"""Time after which no further session begins, on a quiet machine."""


def _seed() -> int:
    """Return a number that is the same for a commit; 0 outside a checkout."""
    try:
        return int(current_commit().partition("-")[0], 16) % 1_000_000
    except ValueError:
        return 0


def keep_the_promise(name: str, sessions: st.SearchStrategy[Any]) -> None:
    """Draw and judge the sessions of an application."""
    campaign = Campaign(name, sessions, _seed(), time.monotonic() + patience(SECONDS), reduce=False)
    campaign.run(chunks=1, size=SESSIONS[name])
    summary = campaign.summary()
    assert summary["commands"] > 0
    assert summary["failed"] == 0, (summary, [line for line in campaign.lines if line.get("faults")])
