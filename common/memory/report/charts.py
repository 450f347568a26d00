"""Draw the report's two figures as inline SVG: memory over time, and the terms of each phase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from common.memory.footprint import ALL
from common.memory.process.budget import GIB, MIB, format_size

WIDTH = 900
LEFT, RIGHT, TOP, BOTTOM = 70, 12, 30, 30
TIMELINE_HEIGHT = 330
ROW_HEIGHT, ROW_BAR = 30, 18
LABEL_WIDTH = 120
LETTER = 6.6
"""Width of a letter in the figures, by which labels that do not fit are left out."""
COLOURS = 8
"""Number of terms with a colour of their own, the baseline first; the others share one."""
HEADROOM = 1.18
FAR_CEILING = 2.5
"""A ceiling this many times above everything else is named at the edge instead of drawn to scale."""


@dataclass(frozen=True, slots=True)
class Span:
    """A measured phase on the time axis."""

    name: str
    start: float
    seconds: float
    peak_bytes: int


def spans(record: Mapping[str, Any]) -> list[Span]:
    """Return the measured phases in order; without start times they follow one another."""
    measured, now = [], 0.0
    for phase in record.get("measured", {}).get("phases", ()):
        start = float(phase.get("start", now))
        measured.append(Span(str(phase["name"]), start, float(phase["seconds"]), int(phase["peak_bytes"])))
        now = start + measured[-1].seconds
    return measured


def predicted(record: Mapping[str, Any]) -> dict[str, int]:
    """Return predicted bytes by phase; the key ``ALL`` has the terms that count in every phase."""
    terms = (record.get("plan") or {}).get("terms", ())
    names = dict.fromkeys([ALL, *(phase for term in terms for phase in term["phases"])])
    sums = {name: sum(t["bytes"] for t in terms if {name, ALL} & set(t["phases"])) for name in names}
    return {name: size for name, size in sums.items() if size}


def ranked_terms(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the plan's terms, the baseline first, then the largest first."""
    terms = (record.get("plan") or {}).get("terms", ())
    baseline = max((t["bytes"] for t in terms if "interpreter" in t["name"]), default=0)
    return sorted(terms, key=lambda t: (t["bytes"] != baseline or "interpreter" not in t["name"], -t["bytes"]))


def merged_terms(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the ranked terms, with those that differ only in their phases merged."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for term in ranked_terms(record):
        one = merged.setdefault((term["name"], term["bytes"], term["source"]), {**term, "phases": []})
        one["phases"] += term["phases"]
    return list(merged.values())


def colours(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the class in the style sheet by name of term."""
    names = list(dict.fromkeys(term["name"] for term in ranked_terms(record)))
    return {name: f"c{min(rank, COLOURS)}" for rank, name in enumerate(names)}


def ticks(top: float, most: int = 6) -> list[int]:
    """Return at most ``most + 1`` round numbers of bytes from 0 to ``top``."""
    step = MIB
    while top / step > most:
        step *= 2
    return list(range(0, int(top) + 1, step))


def _tick(size: int) -> str:
    if size == 0:
        return "0"
    return f"{size / GIB:g} GiB" if size >= GIB else f"{size / MIB:g} MiB"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float, title: str = "") -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}">{inner}</line>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _rectangle(kind: str, x: float, y: float, width: float, height: float, title: str = "") -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    box = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}"'
    return f'<rect class="{kind}" {box}>{inner}</rect>'


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _top(record: Mapping[str, Any]) -> tuple[float, bool]:
    """Return the largest number of bytes on the axis, and whether the ceiling is drawn."""
    ceiling = record["budget"]["host_bytes"]
    shown = [span.peak_bytes for span in spans(record)] + list(predicted(record).values())
    most = max([size for _, size in record.get("measured", {}).get("timeline", ())] + shown, default=ceiling)
    far = ceiling > FAR_CEILING * most
    return HEADROOM * most if far else max(ceiling * 1.06, most * 1.06), not far


def timeline(record: Mapping[str, Any]) -> str:
    """Draw memory over time: samples, measured and predicted peak of each phase, and the ceiling."""
    points: list[tuple[float, int]] = record["measured"]["timeline"]
    measured, expected = spans(record), predicted(record)
    top, ceiling_shown = _top(record)
    last = max([span.start + span.seconds for span in measured] + [t for t, _ in points] + [0.001])
    right, axis = WIDTH - RIGHT, TIMELINE_HEIGHT - BOTTOM

    def x(seconds: float) -> float:
        return LEFT + (right - LEFT) * seconds / last

    def y(size: float) -> float:
        return axis - (axis - TOP) * min(size, top) / top

    parts = [
        _rectangle("band", x(s.start), TOP, x(s.start + s.seconds) - x(s.start), axis - TOP, _tooltip(s, expected))
        for s in measured[::2]
    ]
    for size in ticks(top):
        parts += [_line("grid", LEFT, y(size), right, y(size)), _text(LEFT - 8, y(size) + 4, _tick(size), anchor="end")]
    for seconds in _second_ticks(last):
        parts.append(_text(x(seconds), axis + 18, f"{seconds:g} s", anchor="middle"))
    if points:
        path = " L".join(f"{x(t):.1f} {y(size):.1f}" for t, size in points)
        under = f"M{x(points[0][0]):.1f} {axis} L{path} L{x(points[-1][0]):.1f} {axis}Z"
        parts.append(f'<path class="under" d="{under}"/>')
        parts.append(f'<path class="sampled" d="M{path}"/>')
    free = -1.0
    for span in measured:
        a, b = x(span.start), x(span.start + span.seconds)
        if span.name in expected:
            parts.append(
                _line("predicted", a, y(expected[span.name]), b, y(expected[span.name]), _tooltip(span, expected))
            )
        parts.append(
            _line("peak", a + 1, y(span.peak_bytes), max(a + 1, b - 1), y(span.peak_bytes), _tooltip(span, expected))
        )
        if b - a > LETTER * len(span.name) and a > free:
            parts.append(_text((a + b) / 2, TOP - 10, span.name, anchor="middle"))
            free = b
    parts += _ceiling(record, ceiling_shown, y, right)
    return _svg(TIMELINE_HEIGHT, "Memory over time by phase, against prediction and ceiling", parts)


def _ceiling(record: Mapping[str, Any], shown: bool, y: Any, right: float) -> list[str]:
    size = record["budget"]["host_bytes"]
    if shown:
        return [
            _line("ceiling", LEFT, y(size), right, y(size)),
            _text(right, y(size) + 15, f"ceiling {format_size(size)}", anchor="end", kind="ceiling"),
        ]
    return [_text(right, TOP + 14, f"↑ ceiling {format_size(size)}, far above", anchor="end", kind="ceiling")]


def _tooltip(span: Span, expected: Mapping[str, int]) -> str:
    text = f"{span.name}: {span.seconds:.2f} s, peak {format_size(span.peak_bytes)}"
    return text + (f", predicted {format_size(expected[span.name])}" if span.name in expected else "")


def _second_ticks(last: float) -> list[float]:
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600, 1e9) if last / s <= 8)
    return [round(step * n, 3) for n in range(int(last / step) + 1)]


def composition(record: Mapping[str, Any]) -> str:
    """Draw the terms of each planned phase, with its measured peak as a mark."""
    expected, classes = predicted(record), colours(record)
    peaks: dict[str, int] = {}
    for span in spans(record):
        peaks[span.name] = max(peaks.get(span.name, 0), span.peak_bytes)
    rows = [name for name in expected if name != ALL] or [ALL]
    top, ceiling_shown = _top(record)
    left, right = LABEL_WIDTH, WIDTH - RIGHT - 80
    height = TOP + ROW_HEIGHT * len(rows) + BOTTOM
    largest = max(rows, key=expected.__getitem__)

    def x(size: float) -> float:
        return left + (right - left) * size / top

    parts = []
    for size in ticks(top):
        parts.append(_line("grid", x(size), TOP - 6, x(size), height - BOTTOM))
        parts.append(_text(x(size), height - 10, _tick(size), anchor="middle"))
    for row, name in enumerate(rows):
        above, kind = TOP + ROW_HEIGHT * row, "strong" if name == largest else ""
        middle = above + ROW_BAR / 2
        parts.append(_text(left - 10, middle + 4, "whole run" if name == ALL else name, anchor="end", kind=kind))
        stacked = 0
        for term in ranked_terms(record):
            if {name, ALL} & set(term["phases"]):
                title = f"{term['name']}: {format_size(term['bytes'])} ({term['source']})"
                wide = x(stacked + term["bytes"]) - x(stacked)
                parts.append(
                    _rectangle(classes[term["name"]], x(stacked), above, wide - min(1.0, wide / 3), ROW_BAR, title)
                )
                stacked += term["bytes"]
        parts.append(_text(x(stacked) + 9, middle + 4, format_size(stacked), kind=kind))
        if name in peaks:
            at = x(peaks[name])
            mark = f"M{at:.1f} {middle - 7:.1f}l5 7l-5 7l-5 -7z"
            parts.append(
                f'<path class="mark" d="{mark}"><title>{escape(f"measured {format_size(peaks[name])}")}</title></path>'
            )
    if ceiling_shown:
        size = record["budget"]["host_bytes"]
        parts.append(_line("ceiling", x(size), TOP - 6, x(size), height - BOTTOM))
        parts.append(_text(x(size), TOP - 12, f"ceiling {format_size(size)}", anchor="middle", kind="ceiling"))
    return _svg(height, "Terms of the plan by phase, with measured peaks", parts)
