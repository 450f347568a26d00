"""The record of a run (``run.json``): plan, measurement and ending, without paths or identifiers."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from common.memory.plan.plan import Plan
from common.memory.process import cuda as device
from common.memory.process.budget import MemoryBudget, format_size
from common.memory.process.cuda import Device
from common.memory.process.meter import PeakMeter

if TYPE_CHECKING:
    from common.memory.report.run_json import ErrorJson, ExitCode, PlanJson, RunJson

ABOVE = "above the ceiling"
"""Kind of error of a run that did its work and took more memory than it was allowed."""


@dataclass(slots=True)
class RunRecord:
    """One run of one command."""

    version: str
    """Version of peakline."""
    command: str
    """``"imaging infer"``"""
    budget: MemoryBudget
    """The ceiling."""
    plan: Plan | None = None
    """The chosen plan; ``None`` before planning."""
    results: dict[str, Any] = field(default_factory=dict)
    """The command's results; ``data/schemas/run.schema.json`` describes them by command."""
    exit_code: int = 0
    """Exit code."""
    error: dict[str, str] | None = None
    """Kind and public message of a failure; ``None`` without one."""
    device: Device | None = None
    """The CUDA device; ``None`` for the host."""
    missing_walls: list[str] = field(default_factory=list)
    """Walls that could not be set; the meter still measures the peak."""
    smallest_feasible_bytes: int | None = None
    """Smallest ceiling that is enough; on a refusal only."""
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """ISO 8601, UTC."""
    began: float = field(default_factory=time.monotonic)
    """Monotonic clock at the start."""

    def to_json(self, meter: PeakMeter) -> "RunJson":
        """Return the record as JSON, with the peaks of ``meter``."""
        on_device = device.peak(self.device) if self.device else None
        record: RunJson = {
            "peakline": self.version,
            "command": self.command,
            "started": self.started,
            "seconds": round(time.monotonic() - self.began, 3),
            "exit_code": cast("ExitCode", self.exit_code),
            "budget": {
                "host_bytes": self.budget.host_bytes,
                "device_bytes": self.budget.device_bytes,
                "source": self.budget.source,
            },
            "plan": cast("PlanJson", self.plan.to_json()) if self.plan else None,
            "measured": {
                "peak_bytes": meter.peak_bytes,
                "method": meter.method,
                "floor_bytes": meter.floor_bytes,
                "phases": [
                    {
                        "name": phase.name,
                        "start": round(phase.start, 3),
                        "seconds": round(phase.seconds, 3),
                        "peak_bytes": phase.peak_bytes,
                    }
                    for phase in meter.phases
                ],
                "timeline": list(meter.timeline),
            },
            "missing_walls": self.missing_walls,
            "within_budget": meter.peak_bytes <= self.budget.host_bytes
            and (on_device or 0) <= (self.budget.device_bytes or 0),
            "results": self.results,
        }
        if on_device is not None:
            record["measured"]["device_peak_bytes"] = on_device
        if self.smallest_feasible_bytes is not None:
            record["smallest_feasible_bytes"] = self.smallest_feasible_bytes
        if self.error is not None:
            record["error"] = cast("ErrorJson", self.error)
        return record


def memory_line(record: RunRecord, measured_bytes: int) -> str:
    """Return the last line on the terminal: ceiling, predicted and measured peak, and missing walls."""
    predicted = format_size(record.plan.predicted_peak_bytes) if record.plan else "nothing"
    return "; ".join(
        [
            f"memory: ceiling {format_size(record.budget.host_bytes)}, predicted {predicted},"
            f" measured {format_size(measured_bytes)}",
            *([_device_line(record.device, record.budget)] if record.device else []),
            *record.missing_walls,
        ]
    )


def _device_line(used: Device, budget: MemoryBudget) -> str:
    ceiling, measured = format_size(budget.device_bytes or 0), format_size(device.peak(used))
    return f"{used.name}: ceiling {ceiling}, measured {measured}"
