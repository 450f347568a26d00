"""Render a run's record as one self-contained HTML page: ``python -m common.memory.report RUN.json [REPORT.html]``.

The page has no scripts and loads nothing; it follows the reader's light or dark theme and can be printed. All text from
a record is escaped.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from common.memory.footprint import ALL
from common.memory.process.budget import format_size
from common.memory.report import charts
from common.memory.report.record import ABOVE

MOST_RESULTS = 40
"""Largest number of results shown; ``run.json`` has them all."""

SMALL = 0.005
"""Terms below this share of the peak are shown in one row."""

ENDINGS = {
    0: "Finished",
    1: "Failed",
    2: "Not started: the command line was wrong",
    3: "Refused: it does not fit",
    4: "Stopped: an input could not be used",
    130: "Interrupted",
}


def render(record: Mapping[str, Any], more: Iterable[str] = ()) -> str:
    """Render the page of a record; fields may be missing.

    Parameters
    ----------
    record
        ``run.json`` or ``evaluation.json``.
    more
        Sections of the application as HTML, which come before those about memory.

    Returns
    -------
    str
        HTML.
    """
    title = str(record.get("command", "peakline"))
    style = files("common.memory.report").joinpath("report.css").read_text(encoding="utf-8")
    body = "".join(part for part in (_head(record, title), *more, *_sections(record), _foot(record)) if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{escape(title)}: memory report</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _sections(record: Mapping[str, Any]) -> Iterable[str]:
    if record.get("measured", {}).get("timeline"):
        yield _timeline(record)
    if record.get("plan"):
        yield _composition(record)
        yield _choice(record["plan"])
    if len(charts.spans(record)) > 1:
        yield _phases(record)
    if record.get("results"):
        yield _results(record["results"])


def _head(record: Mapping[str, Any], title: str) -> str:
    verdict, good = _verdict(record)
    parts = [f'<h1>{escape(title)}</h1>\n<div class="verdict{"" if good else " bad"}">{escape(verdict)}</div>\n']
    if lead := _lead(record):
        parts.append(f'<p class="lead">{lead}</p>\n')
    if message := record.get("error", {}).get("message"):
        parts.append(f"<section><h2>What went wrong</h2><pre>{escape(str(message))}</pre></section>\n")
    figures = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in _figures(record))
    return "".join(parts) + (f'<dl class="figures">{figures}</dl>\n' if figures else "")


def _verdict(record: Mapping[str, Any]) -> tuple[str, bool]:
    code = int(record.get("exit_code", 0))
    ending = ENDINGS.get(code, f"Ended with exit code {code}")
    if record.get("error", {}).get("kind") == ABOVE:
        return "✕ Finished above its ceiling", False
    if code != 0:
        return f"✕ {ending}", False
    if "within_budget" not in record:
        return ending, True
    within = bool(record["within_budget"])
    return ("✓ Finished within its ceiling" if within else "✕ Finished above its ceiling"), within


def _lead(record: Mapping[str, Any]) -> str:
    """Return one or two sentences that compare the peak with ceiling and prediction."""
    if "measured" not in record or "budget" not in record:
        return ""
    peak, ceiling = record["measured"]["peak_bytes"], record["budget"]["host_bytes"]
    sentence = f"The process tree peaked at <b>{format_size(peak)}</b> of {format_size(ceiling)}."
    if record.get("exit_code") == 0 and record.get("plan"):
        predicted = record["plan"]["predicted_peak_bytes"]
        error = (predicted - peak) / peak
        nearness = "exactly that" if abs(error) < 0.0005 else f"{abs(error):.1%} {'more' if error > 0 else 'less'}"
        sentence += f" The plan predicted {format_size(predicted)}, {nearness}."
    return sentence


def _figures(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    figures = []
    if "budget" in record:
        figures.append(("Ceiling", format_size(record["budget"]["host_bytes"])))
    if record.get("plan"):
        figures.append(("Predicted", format_size(record["plan"]["predicted_peak_bytes"])))
    if "measured" in record:
        figures.append(("Measured", format_size(record["measured"]["peak_bytes"])))
        if baseline := record["measured"].get("floor_bytes"):
            figures.append(("Baseline: libraries", format_size(baseline)))
    if smallest := record.get("smallest_feasible_bytes"):
        figures.append(("Smallest ceiling that is enough", format_size(smallest)))
    if "seconds" in record:
        figures.append(("Time", _duration(record["seconds"])))
    return figures


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def section(title: str, *parts: str) -> str:
    """Return a section with a title; ``parts`` are HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>\n"


def _timeline(record: Mapping[str, Any]) -> str:
    def key(inner: str, text: str) -> str:
        return f'<span><svg viewBox="0 0 26 10" aria-hidden="true">{inner}</svg>{text}</span>'

    legend = [
        key('<line class="sampled" x1="0" x2="26" y1="5" y2="5"/>', "sampled"),
        key('<line class="peak" x1="2" x2="24" y1="5" y2="5"/>', "peak of a phase, between samples too"),
        key('<line class="predicted" x1="0" x2="26" y1="5" y2="5"/>', "predicted for the phase"),
        key('<line class="ceiling" x1="0" x2="26" y1="5" y2="5"/>', "ceiling"),
    ]
    return section(
        "Memory over time",
        f'<div class="scroll">{charts.timeline(record)}</div>',
        f'<div class="legend">{"".join(legend)}</div>',
    )


def _composition(record: Mapping[str, Any]) -> str:
    plan = record["plan"]
    classes, peak = charts.colours(record), _peak_phase(record)
    rows, small = [], 0
    for term in charts.merged_terms(record):
        fraction = term["bytes"] / plan["predicted_peak_bytes"]
        if fraction < SMALL:
            small += 1
            continue
        when = "always" if ALL in term["phases"] else ", ".join(term["phases"])
        share = f"{fraction:.1%}" if {peak, ALL} & set(term["phases"]) else ""
        name = f'<i class="key {classes[term["name"]]}"></i>{escape(term["name"])}'
        rows.append((name, format_size(term["bytes"]), share, escape(term["source"]), escape(when)))
    if small:
        rows.append(
            (f'<i class="key c{charts.COLOURS}"></i>{small} terms of less than {SMALL:.1%} each', "", "", "", "")
        )
    what = (
        "The diamond is the phase's measured peak." if charts.spans(record) else "Nothing ran, so nothing is measured."
    )
    return section(
        "Terms of the plan",
        f'<p class="note">The terms of each phase. {what}</p>',
        f'<div class="scroll">{charts.composition(record)}</div>',
        table(("Term", "Bytes", "Of the peak", "Source", "Phases"), rows, numbers=(1, 2)),
        f'<p class="note">Reserve above the prediction: {format_size(plan["reserve_bytes"])}, for memory of the kernel'
        " and errors of prediction.</p>",
    )


def _peak_phase(record: Mapping[str, Any]) -> str:
    predicted = charts.predicted(record)
    return max(predicted, key=predicted.__getitem__, default=ALL)


def _choice(plan: Mapping[str, Any]) -> str:
    rows = [
        (f"<code>{escape(str(name))}</code>", f"<code>{escape(str(value))}</code>")
        for name, value in plan["knobs"].items()
    ]
    parts = [table(("Knob", "Chosen"), rows)] if rows else ['<p class="note">Nothing was left open.</p>']
    if plan.get("note"):
        parts.append(f'<p class="note">{escape(str(plan["note"]))}</p>')
    if plan.get("offered", 1) > 1:
        slowdown = plan.get("slowdown", 1.0)
        slower = f", at {slowdown:.2f} times the fastest setting's predicted time" if slowdown > 1.005 else ""
        parts.append(f'<p class="note">The fastest of {plan["offered"]} settings that fits{slower}.</p>')
    if plan.get("rejected"):
        entries = "".join(f"<li>{_rejected(entry)}</li>" for entry in plan["rejected"])
        parts.append(f'<p class="note">Faster settings that were rejected:</p><ul class="note">{entries}</ul>')
    return section("The choice", *parts)


def _rejected(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return escape(str(entry))
    knobs = " ".join(f"{name}={'|'.join(map(str, values))}" for name, values in entry["knobs"].items()) or "all others"
    count = f" ({entry['settings']} settings)" if entry["settings"] > 1 else ""
    if entry["needed_bytes"] is None:
        return f"<code>{escape(knobs)}</code>{count}: {escape(str(entry['why']))}"
    least, most = map(format_size, entry["needed_bytes"])
    return f"<code>{escape(knobs)}</code>{count}: needs {least}" + (f" to {most}" if most != least else "")


def _phases(record: Mapping[str, Any]) -> str:
    """Return a table with a row for each phase: count, time, predicted and measured peak."""
    predicted = charts.predicted(record)
    measured = charts.spans(record)
    rows = []
    for name in dict.fromkeys(span.name for span in measured):
        same = [span for span in measured if span.name == name]
        peak = max(span.peak_bytes for span in same)
        planned = predicted.get(name)
        error = f"{(planned - peak) / peak:+.1%}" if planned else ""
        times = f"{len(same)}x" if len(same) > 1 else ""
        seconds = _duration(sum(span.seconds for span in same))
        rows.append((escape(name), times, seconds, format_size(planned) if planned else "", format_size(peak), error))
    heads = ("Phase", "", "Time", "Predicted", "Measured peak", "Difference")
    return section("Phases", f'<div class="scroll">{table(heads, rows, numbers=(1, 2, 3, 4, 5))}</div>')


def _results(results: Mapping[str, Any]) -> str:
    leaves = list(_flat(results))
    rows = [(f"<code>{escape(name)}</code>", escape(value)) for name, value in leaves[:MOST_RESULTS]]
    more = len(leaves) - len(rows)
    note = [f'<p class="note">{more} more in the record.</p>'] if more > 0 else []
    return section("Results", table(("", ""), rows, numbers=(1,)), *note)


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """Iterate over the leaves of a nested object by dotted name."""
    inner: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    else:
        yield name, f"{value:.6g}" if isinstance(value, float) else str(value)
        return
    for key, element in inner:
        yield from _flat(element, f"{name}.{key}" if name else str(key))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Return a table; cells are HTML, and columns in ``numbers`` are aligned to the right."""

    def cells(kind: str, row: Sequence[str]) -> str:
        return "".join(f"<{kind}{' class=n' if at in numbers else ''}>{cell}</{kind}>" for at, cell in enumerate(row))

    head = f"<thead><tr>{cells('th', heads)}</tr></thead>" if any(heads) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def _foot(record: Mapping[str, Any]) -> str:
    methods = {
        "hwm": "The kernel's high-water mark, reset at each phase, plus the supervisor's private memory.",
        "pss": "The larger of the kernel's high-water mark and the sampled sum over the process tree, with shared pages"
        " counted once.",
    }
    parts = [f"peakline {record['peakline']}" if "peakline" in record else "peakline", str(record.get("started", ""))]
    lines = [" · ".join(part for part in parts if part)]
    if method := record.get("measured", {}).get("method"):
        lines.append("How the peak is measured: " + methods.get(method, str(method)) + " Page cache is not counted.")
    lines += record.get("missing_walls", ())
    return "<footer>" + "<br>".join(escape(line) for line in lines) + "</footer>\n"


def main(argv: Sequence[str]) -> int:
    """Write the page of a record; ``argv`` is ``RUN.json [REPORT.html]``. Returns the exit code."""
    if len(argv) not in (1, 2):
        sys.stderr.write("usage: python -m common.memory.report RUN.json [REPORT.html]\n")
        return 2
    source = Path(argv[0])
    target = Path(argv[1]) if len(argv) == 2 else source.with_suffix(".html")
    try:
        page = render(json.loads(source.read_text(encoding="utf-8")))
        target.write_text(page, encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        sys.stderr.write(f"report: {source}: not a readable record ({type(error).__name__}: {error})\n")
        return 4
    sys.stdout.write(f"{target}\n")
    return 0
