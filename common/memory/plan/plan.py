"""A chosen setting with its footprint, and the settings that were rejected. ``explain`` renders them as text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from common.memory.footprint import ALL, Footprint, Source, Term
from common.memory.process.budget import MIB

Knob = int | float | str
Setting = Mapping[str, Knob]
"""Value by knob, immutable; names are those of the command line with ``_``."""

RESERVE_BYTES = 4 * MIB
"""Reserve for memory of the kernel that the meter cannot see (page tables, sockets): up to 1.2 MiB measured."""
KERNEL_SHARE = 0.015
"""The same as a share of the prediction, for small commands: 0.6 MiB of 60 measured."""
RESERVE_SHARE = 0.01
"""Further reserve as a share of the prediction."""
UNDER_PREDICTION: Mapping[Source, float] = MappingProxyType(
    {"analytic": 0.005, "replayed": 0.02, "measured": 0.01, "estimated": 0.3}
)
"""99th percentile of (measured - predicted) / predicted of a term, by its source; the size of holes in a heap is
estimated."""
WHOLE_FROM = 128 * MIB
"""Size from which a ceiling is rounded up to a whole MiB; smaller ones, where a MiB could be 2 %, to a quarter."""


class OneSetting:
    """A workload whose request decides everything, as a base class: nothing is left to the planner."""

    __slots__ = ()

    def settings(self) -> Iterator[Setting]:
        """One empty setting."""
        yield {}

    def seconds(self, setting: Setting) -> float:
        """The same for the only setting."""
        return 1.0


@dataclass(frozen=True, slots=True)
class Rejected:
    """A setting that was priced and not chosen."""

    knobs: tuple[tuple[str, Knob], ...]
    """Names and values, in the workload's order."""
    needed_bytes: int | None
    """The ceiling that it needs; ``None`` if it could not be measured."""
    why: str | None = None
    """The reason why it could not be measured."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A setting with its footprint."""

    workload: str
    """Name of the command."""
    knobs: tuple[tuple[str, Knob], ...]
    """The chosen setting, as sorted pairs, so that the plan is hashable."""
    footprint: Footprint
    rejected: tuple[Rejected, ...] = ()
    """The faster settings that were priced."""
    offered: int = 1
    """Number of settings to choose from."""
    slowdown: float = 1.0
    """Predicted time over that of the fastest setting offered."""
    note: str = ""
    """What is done instead of what was asked for, and what it loses, where that does not fit."""

    def __getitem__(self, knob: str) -> Any:
        return dict(self.knobs)[knob]

    def get(self, knob: str) -> Any:
        """Return the value of a knob, or ``None`` if the setting does not have it."""
        return dict(self.knobs).get(knob)

    @property
    def predicted_peak_bytes(self) -> int:
        """The largest sum of terms over a phase."""
        return self.footprint.peak_bytes

    @property
    def reserve_bytes(self) -> int:
        """Bytes that must stay free above the prediction."""
        peak, terms = self.predicted_peak_bytes, self.footprint.at_peak()
        return max(
            min(RESERVE_BYTES, int(KERNEL_SHARE * peak)) + int(RESERVE_SHARE * peak),
            sum(int(term.bytes * UNDER_PREDICTION[term.source]) for term in terms),
        )

    @property
    def needed_bytes(self) -> int:
        """The smallest ceiling under which this plan is allowed to run."""
        return self.predicted_peak_bytes + self.reserve_bytes

    @property
    def feasible_bytes(self) -> int:
        """``needed_bytes``, rounded up to a ceiling that is easy to type."""
        needed = self.needed_bytes
        unit = MIB if needed >= WHOLE_FROM else MIB // 4
        return -(-needed // unit) * unit

    def including(self, phase: str, size: int, *, name: str = "measuring costs") -> "Plan":
        """Return the plan with a further term, for a phase that was measured to reach ``size`` bytes.

        ``ALL`` as the phase: what all phases have in common was measured to be that large.
        """
        shared = sum(term.bytes for term in self.footprint.terms if ALL in term.phases)
        return self.plus(Term(name, max(0, size - shared), "measured", (phase,)))

    def plus(self, term: Term) -> "Plan":
        """Return the plan with a further term; the same if it has no bytes."""
        return replace(self, footprint=Footprint.of([*self.footprint.terms, term]))

    @classmethod
    def received(cls, written: Mapping[str, Any]) -> "Plan":
        """Make the plan again that another rank has sent as ``to_json``, without the rejected settings."""
        terms = [Term(**{**term, "phases": tuple(term["phases"])}) for term in written["terms"]]
        knobs = tuple(sorted(written["knobs"].items()))
        return cls(
            written["workload"],
            knobs,
            Footprint.of(terms),
            offered=written["offered"],
            slowdown=written["slowdown"],
        )

    def to_json(self) -> dict[str, Any]:
        """Return the ``plan`` object of ``run.json``, with the command's name, which ``--plan`` checks."""
        return {
            "workload": self.workload,
            **({"note": self.note} if self.note else {}),
            "knobs": dict(self.knobs),
            "terms": [asdict(term) for term in self.footprint.terms],
            "predicted_peak_bytes": self.predicted_peak_bytes,
            "reserve_bytes": self.reserve_bytes,
            "offered": self.offered,
            "slowdown": round(self.slowdown, 4),
            "rejected": [group.to_json() for group in grouped(self.rejected, dict(self.knobs))],
        }


@dataclass(frozen=True, slots=True)
class Group:
    """Rejected settings in one entry: every combination of these values."""

    knobs: Mapping[str, tuple[Knob, ...]]
    settings: int
    needed_bytes: tuple[int, int] | None
    """The least and the most that one of them needs."""
    why: str | None

    def to_json(self) -> dict[str, Any]:
        """Return an entry of the plan's ``rejected``."""
        knobs = {name: list(values) for name, values in self.knobs.items()}
        needs = list(self.needed_bytes) if self.needed_bytes else None
        return {"knobs": knobs, "settings": self.settings, "needed_bytes": needs, "why": self.why}


def grouped(rejected: Sequence[Rejected], chosen: Setting) -> list[Group]:
    """Merge settings that differ in one knob into groups, as far as possible.

    Knobs that depend on others (accumulation on micro-batch) are left out, and so are those of which a group has every
    value that occurs.
    """
    everything = [dict(one.knobs) for one in rejected] + ([dict(chosen)] if chosen else [])
    names = _distinguishing(everything)
    boxes = [Group({n: (dict(one.knobs)[n],) for n in names}, 1, _range(one), one.why) for one in rejected]
    merging = True
    while merging:
        merging = False
        for index, one in enumerate(boxes):
            other = next((b for b in boxes[index + 1 :] if b.why == one.why and _differing(one, b) == 1), None)
            if other is not None:
                boxes[index] = _merge(one, other)
                boxes.remove(other)
                merging = True
    values = {name: {setting[name] for setting in everything} for name in names}
    return [
        Group({n: v for n, v in b.knobs.items() if len(v) < len(values[n])}, b.settings, b.needed_bytes, b.why)
        for b in boxes
    ]


def _range(one: Rejected) -> tuple[int, int] | None:
    return None if one.needed_bytes is None else (one.needed_bytes, one.needed_bytes)


def _distinguishing(settings: Sequence[Setting]) -> list[str]:
    """Return the fewest knobs that distinguish the settings; of two that distinguish the same the first stays."""
    names = list(settings[0]) if settings else []
    different = len({tuple(setting[name] for name in names) for setting in settings})
    for name in reversed(list(names)):
        fewer = [other for other in names if other != name]
        if len({tuple(setting[other] for other in fewer) for setting in settings}) == different:
            names = fewer
    return names


def _differing(one: Group, other: Group) -> int:
    return sum(one.knobs[name] != other.knobs[name] for name in one.knobs)


def _merge(one: Group, other: Group) -> Group:
    knobs = {name: tuple(dict.fromkeys(values + other.knobs[name])) for name, values in one.knobs.items()}
    needs = [size for group in (one, other) for size in group.needed_bytes or ()]
    return Group(knobs, one.settings + other.settings, (min(needs), max(needs)) if needs else None, one.why)
