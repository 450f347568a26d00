"""Render plans, rejected settings, refusals and excesses as text."""

from collections.abc import Mapping

from common.errors import DoesNotFit
from common.memory.footprint import ALL, Term
from common.memory.plan.plan import Group, Plan, Setting, grouped
from common.memory.process.budget import MIB, format_size

BAR_CELLS = 28
_EIGHTHS = " ▏▎▍▌▋▊▉"


def group_text(group: Group) -> str:
    """Return one line on rejected settings: knobs, number, and what they need."""
    knobs = " ".join(f"{name}={'|'.join(map(str, values))}" for name, values in group.knobs.items()) or "all others"
    count = f" ({group.settings} settings)" if group.settings > 1 else ""
    if group.needed_bytes is None:
        return f"{knobs}{count}: {group.why}"
    least, most = map(format_size, group.needed_bytes)
    return f"{knobs}{count}: " + (f"needs {least}" if least == most else f"need {least} to {most}")


def plan_text(plan: Plan, ceiling: int | None = None) -> str:
    """Return what ``--dry-run`` shows: terms as bars, phases, knobs, and the reason for the choice.

    Parameters
    ----------
    plan
        The plan.
    ceiling
        In bytes; with it, the reserve and what is free are shown too.
    """
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
    """Return lines with the knobs, what is done instead of what was asked for, and the rejected settings."""
    lines = [f"  knobs: {_pairs(dict(plan.knobs)) or 'nothing left to choose'}"]
    lines += [f"  {plan.note}"] if plan.note else []
    if plan.offered > 1:
        slower = f", {plan.slowdown:.2f} times the fastest's time" if plan.slowdown > 1.005 else ""
        lines.append(f"  the fastest of {plan.offered} settings that fits{slower}")
    lines += [f"    rejected: {group_text(group)}" for group in grouped(plan.rejected, dict(plan.knobs))]
    return lines


def _bar(share: float) -> str:
    eighths = round(share * BAR_CELLS * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).strip()


def _pairs(setting: Setting) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.items())


def remedy_text(change: str, needed_bytes: int) -> str:
    """Return a change of the command line with what it needs."""
    return f"{change} (needs {format_size(needed_bytes)})"


def refusal_text(refusal: DoesNotFit) -> str:
    """Return the reason why nothing fits, and the remedies as a numbered list."""
    ceiling, need = refusal.ceiling, refusal.smallest_feasible_bytes
    smallest: Plan | None = refusal.smallest
    if smallest is None or need is None:
        return f"does not fit in {format_size(ceiling)}: " + ("; ".join(refusal.reasons) or "nothing could be priced")
    if need <= ceiling:
        return (
            f"measuring what it needs took more than {format_size(ceiling)}; the result is cached now: it needs"
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


def excess_text(plan: Plan | None, peaks: Mapping[str, int], ceiling: int) -> str:
    """Return one line on a run that was above its ceiling: by how much, in which phase, and which term was short.

    Parameters
    ----------
    plan
        The prediction; ``None`` if the run had no plan.
    peaks
        Measured peak in bytes by phase, of one phase at least.
    ceiling
        In bytes.
    """
    phase = max(peaks, key=peaks.__getitem__)
    above = f"{format_size(peaks[phase])} of {format_size(ceiling)}, {format_size(peaks[phase] - ceiling)} above"
    line = f"was above its ceiling in phase {phase!r}: {above}"
    predicted = plan.footprint.phases().get(phase) if plan else None
    if plan is None or predicted is None:
        return f"{line}; nothing was predicted for this phase"
    term = _short_term(plan, peaks, phase)
    return f"{line}; predicted there {format_size(predicted)}; too small: {term.name} ({format_size(term.bytes)})"


def _short_term(plan: Plan, peaks: Mapping[str, int], phase: str) -> Term:
    """The term that explains an excess of ``phase`` best.

    Only sums are measured. A term that was too small was so in all of its phases, so one is the less likely the more
    of its other phases stayed within their predictions. If several are equal, the largest is named.
    """
    within = {name for name, size in plan.footprint.phases().items() if name in peaks and peaks[name] <= size}

    def acquitted(term: Term) -> int:
        return len(within) if ALL in term.phases else len(within.intersection(term.phases))

    terms = [term for term in plan.footprint.terms if {phase, ALL}.intersection(term.phases)]
    return min(terms, key=lambda term: (acquitted(term), -term.bytes))
