"""Choose the setting that fits: the only planner.

A workload lists the settings that the user's flags leave open, says what must be known to price one (probes), and
prices it by arithmetic. The planner asks in the order of predicted time, so the first setting that fits is the
fastest; when none does, it names the smallest ceiling that would do.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from common.memory.budget import MIB, MemoryBudget, format_size
from common.memory.costs import Costs, CostStore, Probe, ProbeFailed
from common.memory.footprint import ALL, Footprint, Source, Term

Knob = int | float | str
Setting = Mapping[str, Knob]
"""Knob -> value, immutable; the command line's own names with "_"."""

RESERVE_BYTES = 4 * MIB
"""The least reserve: what the kernel holds for us (page tables, sockets) and the meter cannot see."""
RESERVE_SHARE = 0.01
"""The least reserve as a share of the prediction."""
UNDER_PREDICTION: Mapping[Source, float] = MappingProxyType({"analytic": 0.005, "replayed": 0.02, "measured": 0.01})
"""99th percentile of (measured - predicted) / predicted of a term, by the source of its number."""


class Workload(Protocol):
    """A command that allocates; one object per command in ``apps/<app>/workloads.py``."""

    @property
    def name(self) -> str:
        """``"imaging train"``"""
        ...

    def settings(self) -> Iterator[Setting]:
        """Settings that the user's flags leave open; quality-changing ones last."""
        ...

    def probes(self, setting: Setting, /) -> Sequence[Probe]:
        """What must be known before ``setting`` can be priced."""
        ...

    def footprint(self, setting: Setting, known: Costs, /) -> Footprint:
        """Price one setting; pure arithmetic."""
        ...

    def seconds(self, setting: Setting, known: Costs, /) -> float:
        """Predicted time; relative is enough. Must answer before any probe is known."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """A setting with its price: immutable, printable, JSON."""

    workload: str
    """The command it was made for."""
    knobs: tuple[tuple[str, Knob], ...]
    """The chosen setting, as sorted pairs so that the plan is hashable."""
    footprint: Footprint
    """Its terms."""
    rejected: tuple[str, ...] = ()
    """Why each faster setting was not taken, a line each."""

    def __getitem__(self, knob: str) -> Any:
        return dict(self.knobs)[knob]

    @property
    def predicted_peak_bytes(self) -> int:
        """The largest phase's sum of terms."""
        return self.footprint.peak_bytes

    @property
    def reserve_bytes(self) -> int:
        """What must stay free above the prediction."""
        terms = self.footprint.at_peak()
        return max(
            RESERVE_BYTES + int(RESERVE_SHARE * self.predicted_peak_bytes),
            sum(int(term.bytes * UNDER_PREDICTION[term.source]) for term in terms),
        )

    @property
    def needed_bytes(self) -> int:
        """The smallest ceiling under which this plan is allowed to run."""
        return self.predicted_peak_bytes + self.reserve_bytes

    def including(self, phase: str, size: int) -> "Plan":
        """The plan with a phase that is over already and held ``size`` bytes: measuring costs in a child."""
        shared = sum(term.bytes for term in self.footprint.terms if ALL in term.phases)
        term = Term("measuring costs", max(0, size - shared), "measured", (phase,))
        return replace(self, footprint=Footprint.of([*self.footprint.terms, term]))

    def to_json(self) -> dict[str, Any]:
        """The ``plan`` object of ``run.json``, with the workload's name so that ``--plan`` can check it."""
        return {
            "workload": self.workload,
            "knobs": dict(self.knobs),
            "terms": [asdict(term) for term in self.footprint.terms],
            "predicted_peak_bytes": self.predicted_peak_bytes,
            "reserve_bytes": self.reserve_bytes,
            "rejected": list(self.rejected),
        }

    def __str__(self) -> str:
        knobs = ", ".join(f"{name}={value}" for name, value in self.knobs)
        lines = [f"plan for {self.workload}: {knobs or 'nothing left to choose'}"]
        width = max(len(term.name) for term in self.footprint.terms)
        lines += [
            f"  {term.name:<{width}}  {format_size(term.bytes):>11}  {term.source}" for term in self.footprint.at_peak()
        ]
        lines.append(
            f"  predicted peak {format_size(self.predicted_peak_bytes)} in phase {self.footprint.peak_phase!r},"
            f" reserve {format_size(self.reserve_bytes)}"
        )
        lines += [f"  rejected: {why}" for why in self.rejected]
        return "\n".join(lines)


class DoesNotFit(Exception):
    """No setting fits (exit 3). ``smallest`` is the plan that needs the least, where one could be priced."""

    def __init__(self, budget: MemoryBudget, smallest: Plan | None, rejected: Sequence[str]) -> None:
        self.budget, self.smallest, self.rejected = budget, smallest, tuple(rejected)
        super().__init__(self._message())

    @property
    def smallest_feasible_bytes(self) -> int | None:
        """The smallest ceiling that would do, rounded up to a whole MiB; ``None`` if nothing could be priced."""
        return -(-self.smallest.needed_bytes // MIB) * MIB if self.smallest else None

    def _message(self) -> str:
        ceiling = format_size(self.budget.host_bytes)
        if self.smallest is None or self.smallest_feasible_bytes is None:
            return f"does not fit in {ceiling}: " + ("; ".join(self.rejected) or "no setting could be priced")
        terms = ", ".join(f"{t.name} {format_size(t.bytes)}" for t in self.smallest.footprint.at_peak()[:3])
        need = self.smallest_feasible_bytes
        knobs = " ".join(f"{name}={value}" for name, value in self.smallest.knobs)
        return (
            f"does not fit in {ceiling}; largest terms: {terms}. "
            f"Remedy: --memory {need // MIB}MiB is the smallest ceiling that would do ({knobs or 'no other setting'})"
        )


def _describe(setting: Setting) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.items())


def price(workload: Workload, setting: Setting, costs: CostStore, *, ceiling: int | None) -> Plan:
    """Measure what is missing (``CostStore.known``), then price one setting.

    Raises
    ------
    ProbeFailed
        If a probe could not be measured under the ceiling.
    """
    known = costs.known(workload.probes(setting), ceiling=ceiling)
    return Plan(workload.name, tuple(sorted(setting.items())), workload.footprint(setting, known))


def plan(workload: Workload, budget: MemoryBudget, costs: CostStore) -> Plan:
    """The fastest setting whose predicted peak plus reserve is within the ceiling.

    Raises
    ------
    DoesNotFit
        Carrying the plan that needs the least.
    """
    ceiling = budget.host_bytes
    known = costs.cached(probe for setting in workload.settings() for probe in workload.probes(setting))
    ordered = sorted(workload.settings(), key=lambda setting: workload.seconds(setting, known))
    rejected: list[str] = []
    smallest: Plan | None = None
    for setting in ordered:
        try:
            candidate = price(workload, setting, costs, ceiling=ceiling)
        except ProbeFailed as failure:
            rejected.append(f"{_describe(setting)}: {failure}")
            continue
        if candidate.needed_bytes <= ceiling:
            return replace(candidate, rejected=tuple(rejected))
        rejected.append(f"{_describe(setting)}: needs {format_size(candidate.needed_bytes)}")
        if smallest is None or candidate.needed_bytes < smallest.needed_bytes:
            smallest = candidate
    if smallest is None and ordered:
        # Not even the libraries could be loaded. The slowest setting is the one that needs least; a refusal names it.
        with suppress(ProbeFailed):
            smallest = price(workload, ordered[-1], costs, ceiling=None)
    raise DoesNotFit(budget, smallest, rejected)


def read_plan(text: str, workload: Workload, budget: MemoryBudget, costs: CostStore) -> Plan:
    """A plan fed back by ``--plan``: only its knobs are believed; it is priced anew and must fit.

    Raises
    ------
    ValueError
        If it is not a plan, is for another command, or sets a knob that this command does not have.
    DoesNotFit
        If the edited setting does not fit.
    """
    try:
        data = json.loads(text)
        name, knobs = data["workload"], dict(data["knobs"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not a plan: {error!r}") from None
    if name != workload.name:
        raise ValueError(f"a plan for {name!r}, not for {workload.name!r}")
    template = next(workload.settings())
    if unknown := sorted(set(knobs) ^ set(template)):
        raise ValueError(f"unknown or missing knobs: {', '.join(unknown)}; expected {', '.join(sorted(template))}")
    for knob, value in knobs.items():
        if type(value) is not type(template[knob]):
            raise ValueError(f"knob {knob}: {value!r} is not {type(template[knob]).__name__}")
    try:
        candidate = price(workload, MappingProxyType(knobs), costs, ceiling=budget.host_bytes)
    except ProbeFailed as failure:
        raise DoesNotFit(budget, None, [str(failure)]) from None
    if candidate.needed_bytes > budget.host_bytes:
        raise DoesNotFit(budget, candidate, [])
    return candidate
