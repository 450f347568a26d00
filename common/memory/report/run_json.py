"""Fields of ``run.json`` and of the output of ``--json``.

``data/schemas/run.schema.json`` is generated from these types. Bytes are integers, times seconds.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from common.memory.footprint import Source

Bytes = Annotated[int, ("minimum", 0)]
Seconds = Annotated[float, ("minimum", 0)]
Knob = int | float | str
ExitCode = Literal[0, 1, 2, 3, 4, 130]


class RanksJson(TypedDict):
    """The ranks of a training under ``torchrun``."""

    size: Annotated[int, ("minimum", 2)]
    peak_bytes: list[int]
    """Measured peak of each rank, in the order of ranks."""


class BudgetJson(TypedDict):
    """The ceilings."""

    host_bytes: Bytes
    """Ceiling of the whole process tree."""
    device_bytes: Bytes | None
    """Ceiling on the CUDA device; null where the command computes on the CPU."""
    source: str
    """Origin of the ceiling: ``--memory``, or what was read for ``auto``."""


class TermJson(TypedDict):
    """One term of the predicted need."""

    name: str
    """Purpose of the bytes."""
    bytes: Bytes
    """At the term's own peak."""
    source: Source
    """Origin of the number."""
    phases: Annotated[list[str], ("minItems", 1)]
    """The phases in which the term counts; ``*``: all."""


class RejectedJson(TypedDict):
    """Settings that were not taken, grouped by the reason."""

    knobs: Mapping[str, list[Knob]]
    """By knob, the values of the settings in the group."""
    settings: Annotated[int, ("minimum", 1)]
    """Number of settings in the group."""
    needed_bytes: tuple[Bytes, Bytes] | None
    """The least and the largest of the ceilings that would do for them; null where they are not known."""
    why: str | None
    """Why nothing is known about the need; null where the need is more than the ceiling."""


class PlanJson(TypedDict):
    """The chosen setting and its predicted need. On a refusal: the setting that needs least."""

    workload: str
    """The command that was planned."""
    note: NotRequired[str]
    """What is done instead of what was asked for, and what it loses; absent where it is what was asked for."""
    knobs: Mapping[str, Knob]
    """The chosen values, by the names of the command line with ``_``."""
    terms: list[TermJson]
    """Everything that takes memory."""
    predicted_peak_bytes: Bytes
    """The largest phase's sum of terms."""
    reserve_bytes: Bytes
    """Bytes that must stay free above the prediction."""
    offered: NotRequired[Annotated[int, ("minimum", 0)]]
    """Number of settings to choose from; absent from records of the first versions."""
    slowdown: NotRequired[Annotated[float, ("exclusiveMinimum", 0)]]
    """Predicted time over that of the fastest setting offered; absent from records of the first versions."""
    rejected: list[RejectedJson]
    """Faster settings, and why they were not taken."""


class PhaseJson(TypedDict):
    """A stretch of the run with its own measured peak."""

    name: str
    """As in the plan's terms."""
    start: NotRequired[Seconds]
    """Since the command began; absent from records of the first versions."""
    seconds: Seconds
    """Duration of the phase."""
    peak_bytes: Bytes
    """Peak of the process tree."""


class MeasuredJson(TypedDict):
    """Measurements of the run."""

    peak_bytes: Bytes
    """Peak of the process tree over all phases."""
    method: Literal["hwm", "pss"]
    """The kernel's high-water mark of one process, or the sum of PSS over several."""
    floor_bytes: Bytes
    """Resident after the warm-up: the baseline."""
    phases: list[PhaseJson]
    """In order."""
    timeline: list[tuple[Seconds, Bytes]]
    """Time and bytes, at most 1,000 points."""
    device_peak_bytes: NotRequired[Bytes]
    """Peak on the CUDA device, where one was used."""


class ErrorJson(TypedDict):
    """Why the command did not end well."""

    kind: str
    """``input``, ``usage``, ``does not fit``, ``above the ceiling``, ``out of memory``, ``killed``, or an exception's
    name."""
    message: str
    """Without paths and identifiers."""


class RunJson(TypedDict):
    """The record of a command that planned, ran or was refused."""

    peakline: str
    """The version."""
    command: str
    """``imaging infer``, for example."""
    started: str
    """ISO 8601, UTC."""
    seconds: Seconds
    """From start to end."""
    exit_code: ExitCode
    """0 done, 1 unforeseen, 2 usage, 3 does not fit, 4 bad input, 130 interrupted."""
    budget: BudgetJson
    plan: PlanJson | None
    """Null where the command ended before there was one."""
    measured: MeasuredJson
    missing_walls: NotRequired[list[str]]
    """Limits that could not be set."""
    within_budget: bool
    """True if the measured peaks are within the ceilings."""
    results: Mapping[str, Any]
    """Results of the command: metrics, studies, items."""
    smallest_feasible_bytes: NotRequired[Annotated[int, ("minimum", 1)]]
    """On a refusal: the smallest ceiling that would do."""
    error: NotRequired[ErrorJson]
    """On a failure."""


class EndingJson(TypedDict):
    """The record of a command that ended before it could plan, or that was killed."""

    peakline: NotRequired[str]
    """The version."""
    command: str
    exit_code: Literal[1, 2, 3, 4, 130]
    error: ErrorJson


def description_of(record: Mapping[str, Any]) -> type[RunJson] | type[EndingJson]:
    """The description that a record has to match."""
    return RunJson if "measured" in record else EndingJson
