"""Checks of every command's record."""

from typing import Any

from common.memory.process.budget import MIB


def kept(record: dict[str, Any]) -> None:
    """No more was used than was said, with the reserve, which is there for what differs from run to run: tests run
    next to each other. How near predictions are without it, the suites ``promise`` and ``prediction-*`` ask."""
    plan, peak = record["plan"], record["measured"]["peak_bytes"]
    phases = [(phase["name"], phase["peak_bytes"]) for phase in record["measured"]["phases"]]
    assert record["within_budget"]
    assert peak <= plan["predicted_peak_bytes"] + plan["reserve_bytes"], (plan["terms"], phases)


def predicted_closely(record: dict[str, Any]) -> None:
    """The prediction is not below the truth, and near it."""
    predicted, measured = record["plan"]["predicted_peak_bytes"], record["measured"]["peak_bytes"]
    baseline = record["measured"]["floor_bytes"]
    told = f"predicted {predicted / MIB:.1f}, measured {measured / MIB:.1f}, baseline {baseline / MIB:.1f} MiB"
    kept(record)
    assert predicted <= 1.15 * measured, told
    if measured - baseline >= 128 * MIB:
        assert predicted - baseline <= 1.25 * (measured - baseline), told
