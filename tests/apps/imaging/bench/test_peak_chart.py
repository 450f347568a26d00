"""The README's chart is what the table in ``docs/peers.md`` says."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from apps.imaging.bench import peak_chart

DOCS = Path(__file__).parents[4] / "docs"


def test_the_committed_chart_is_drawn_from_the_table() -> None:
    rows = peak_chart.read((DOCS / "peers.md").read_text("utf-8"))
    assert (DOCS / "peaks.svg").read_text("utf-8") == peak_chart.draw(rows)


def test_a_chart_has_a_mark_for_each_peak_and_higher_marks_for_larger_ones() -> None:
    svg = ElementTree.fromstring(peak_chart.draw([(100, 600, 4000), (400, 900, 12000)]))
    marks = [(mark.get("fill"), float(mark.get("cy", ""))) for mark in svg.iter("{http://www.w3.org/2000/svg}circle")]
    heights = {fill: [height for of, height in marks if of == fill] for fill in (peak_chart.PEER, peak_chart.OURS)}
    assert len(marks) == 4
    assert heights[peak_chart.PEER][0] > heights[peak_chart.PEER][1]  # SVG counts downwards
    assert max(heights[peak_chart.PEER]) < min(heights[peak_chart.OURS])


def test_a_document_without_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no table"):
        peak_chart.read("# peers\n| 100 | 600 MiB | 3,848 MiB |\n")
