"""A plan, its rejected alternatives and a refusal, in words and in few lines. Pure text: nothing here prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.memory.process.budget import MIB, format_size

if TYPE_CHECKING:
    from common.memory.plan.planner import DoesNotFit, Knob, Plan, Rejected, Setting

BAR_CELLS = 28
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, slots=True)
class Group:
    """Rejected settings that can be said in one line: every combination of these values."""

    knobs: Mapping[str, tuple[Knob, ...]]
    settings: int
    needed_bytes: tuple[int, int] | None
    """Least and most."""
    why: str | None

    def to_json(self) -> dict[str, Any]:
        """An entry of the plan's ``rejected``."""
        knobs = {name: list(values) for name, values in self.knobs.items()}
        needs = list(self.needed_bytes) if self.needed_bytes else None
        return {"knobs": knobs, "settings": self.settings, "needed_bytes": needs, "why": self.why}

    def __str__(self) -> str:
        what = " ".join(f"{name}={'|'.join(map(str, values))}" for name, values in self.knobs.items()) or "all others"
        count = f" ({self.settings} settings)" if self.settings > 1 else ""
        return f"{what}{count}: {self._reason()}"

    def _reason(self) -> str:
        if self.needed_bytes is None:
            return str(self.why)
        least, most = map(format_size, self.needed_bytes)
        return f"needs {least}" if least == most else f"need {least} to {most}"


def grouped(rejected: Sequence[Rejected], chosen: Setting) -> list[Group]:
    """Merge settings that differ in one knob into one line, as often as it goes.

    Knobs that follow from the others (the accumulation from the micro-batch) are left out, and so are those in which
    a group takes every value that occurs.
    """
    everything = [dict(one.knobs) for one in rejected] + ([dict(chosen)] if chosen else [])
    names = _telling(everything)
    boxes = [Group({n: (dict(one.knobs)[n],) for n in names}, 1, _range(one), one.why) for one in rejected]
    merging = True
    while merging:
        merging = False
        for place, one in enumerate(boxes):
            other = next((b for b in boxes[place + 1 :] if b.why == one.why and _differing(one, b) == 1), None)
            if other is not None:
                boxes[place] = _merge(one, other)
                boxes.remove(other)
                merging = True
    values = {name: {setting[name] for setting in everything} for name in names}
    return [
        Group({n: v for n, v in b.knobs.items() if len(v) < len(values[n])}, b.settings, b.needed_bytes, b.why)
        for b in boxes
    ]


def _range(one: Rejected) -> tuple[int, int] | None:
    return None if one.needed_bytes is None else (one.needed_bytes, one.needed_bytes)


def _telling(settings: Sequence[Setting]) -> list[str]:
    """The fewest knobs that still tell the settings apart; of two that say the same the first stays."""
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


def plan_text(plan: Plan, ceiling: int | None = None) -> str:
    """What ``--dry-run`` shows: terms as bars, phases, knobs, and why this setting."""
    terms, peak = plan.footprint.at_peak(), plan.predicted_peak_bytes
    of = f" of {format_size(ceiling)}" if ceiling else ""
    lines = [
        f"plan for {plan.workload}: predicted peak {format_size(peak)}{of} in phase {plan.footprint.peak_phase!r},"
        f" reserve {format_size(plan.reserve_bytes)}",
        "",
    ]
    rows: list[tuple[str, int, str]] = [(term.name, term.bytes, term.source) for term in terms]
    if ceiling and (free := ceiling - plan.needed_bytes) > 0:
        rows += [("reserve", plan.reserve_bytes, ""), ("free", free, "")]
    width, largest = max(len(name) for name, _, _ in rows), max(size for _, size, _ in rows)
    lines += [
        f"  {name:<{width}}  {format_size(size):>11}  {_bar(size / largest):<{BAR_CELLS}}  {source}".rstrip()
        for name, size, source in rows
    ]
    phases = plan.footprint.phases()
    if len(phases) > 1:
        lines += ["", "  phases: " + ", ".join(f"{name} {format_size(size)}" for name, size in phases.items())]
    return "\n".join([*lines, "", *choice_lines(plan)])


def choice_lines(plan: Plan) -> list[str]:
    """The knobs, and why they were chosen."""
    lines = [f"  knobs: {_pairs(dict(plan.knobs)) or 'nothing left to choose'}"]
    if plan.offered > 1:
        slower = f", {plan.slowdown:.2f} times the fastest's time" if plan.slowdown > 1.005 else ""
        lines.append(f"  the fastest of {plan.offered} settings that fits{slower}")
    lines += [f"    rejected: {group}" for group in grouped(plan.rejected, dict(plan.knobs))]
    return lines


def _bar(share: float) -> str:
    eighths = round(share * BAR_CELLS * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).strip()


def _pairs(setting: Setting) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.items())


def remedy_text(change: str, needed_bytes: int) -> str:
    """A change of the command line with what it would need."""
    return f"{change} (needs {format_size(needed_bytes)})"


def refusal_text(refusal: DoesNotFit) -> str:
    """Why nothing fits, and numbered remedies with their numbers filled in."""
    ceiling, smallest, need = refusal.budget.host_bytes, refusal.smallest, refusal.smallest_feasible_bytes
    if smallest is None or need is None:
        return f"does not fit in {format_size(ceiling)}: " + ("; ".join(refusal.reasons) or "nothing could be priced")
    if need <= ceiling:
        return (
            f"to measure what it needs took more than {format_size(ceiling)}; it is known now:"
            f" {format_size(need)}, so the same command runs if given again"
        )
    terms = ", ".join(f"{term.name} {format_size(term.bytes)}" for term in smallest.footprint.at_peak()[:3])
    knobs = _pairs(dict(smallest.knobs)) or "no other setting"
    remedies = [f"--memory {need / MIB:.10g}MiB is the smallest ceiling that would do ({knobs})", *refusal.remedies]
    return "\n".join(
        [
            f"does not fit in {format_size(ceiling)}; largest terms: {terms}. Remedies:",
            *(f"  {number}. {remedy}" for number, remedy in enumerate(remedies, start=1)),
        ]
    )
