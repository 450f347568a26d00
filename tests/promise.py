"""What every command's record has to show."""

from typing import Any


def kept(record: dict[str, Any]) -> None:
    """No more was used than was said, with the reserve, which is there for what differs from run to run: tests run
    beside each other. How near predictions are without it, the suites ``promise`` and ``prediction-*`` ask."""
    plan, peak = record["plan"], record["measured"]["peak_bytes"]
    phases = [(phase["name"], phase["peak_bytes"]) for phase in record["measured"]["phases"]]
    assert record["within_budget"]
    assert peak <= plan["predicted_peak_bytes"] + plan["reserve_bytes"], (plan["terms"], phases)
