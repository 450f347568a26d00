"""A few random sessions are judged by the tests; here is what both applications share.

They are the same in every run, so that a commit which passed passes again. ``make bench-promise ONLY='random-*'``
draws new ones.
"""

import time
from typing import Any

from hypothesis import strategies as st

from common.bench.random_commands import Campaign
from tests.machine import patience

SESSIONS = {"recsys": 2, "imaging": 1}
"""Sessions of each application; one of ``imaging`` takes as long as two of ``recsys``, 10 processor seconds."""
SEED = 5
SECONDS = 40
"""Time after which no further session begins, on a quiet machine."""


def keep_the_promise(name: str, sessions: st.SearchStrategy[Any]) -> None:
    """Draw and judge the sessions of an application."""
    campaign = Campaign(name, sessions, SEED, time.monotonic() + patience(SECONDS), reduce=False)
    campaign.run(chunks=1, size=SESSIONS[name])
    summary = campaign.summary()
    assert summary["commands"] > 0
    assert summary["failed"] == 0, (summary, [line for line in campaign.lines if line.get("faults")])
