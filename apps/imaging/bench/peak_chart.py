"""Draw the chart of the README: peak memory against volume size, from the table in ``docs/peers.md``.

``python -m apps.imaging.bench.peak_chart docs/peers.md -o docs/peaks.svg``
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from common.files import write_text

HEADING = "### Peak against volume size"
"""The section of the document that has the table: slices, peak of ``imaging infer``, peak of MONAI."""
CEILING_MIB = 1024
"""``--memory`` of the runs in the table."""
WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 132, 44, 52
OURS, PEER, INK, GRID = "#0b6e4f", "#b3541e", "#24292f", "#d8dee4"
STEP_MIB = 2048
"""Distance of the horizontal grid lines."""

Row = tuple[int, int, int]


def read(document: str) -> list[Row]:
    """Return the rows of the table: slices, and the peaks of ``imaging infer`` and of MONAI in MiB.

    Raises
    ------
    ValueError
        The document has no such table.

    Examples
    --------
    >>> read(HEADING + "\\n| slices | ours | MONAI |\\n|---|---|---|\\n| 100 | 600 MiB | 3,848 MiB |\\n")
    [(100, 600, 3848)]
    """
    section = document.partition(HEADING)[2].partition("\n#")[0]
    pattern = re.compile(r"^\| (\d+) \| ([\d,]+) MiB \| ([\d,]+) MiB \|$", re.MULTILINE)
    rows = [tuple(int(cell.replace(",", "")) for cell in cells) for cells in pattern.findall(section)]
    if not rows:
        raise ValueError(f"no table below {HEADING!r}")
    return [(slices, ours, theirs) for slices, ours, theirs in rows]


def draw(rows: Sequence[Row]) -> str:
    """Return the chart as a self-contained SVG with a white background."""
    longest, top = max(row[0] for row in rows), max(row[2] for row in rows) * 1.04

    def x(slices: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * slices / longest

    def y(mib: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * mib / top

    def text(at: float, down: float, words: str, *, anchor: str = "start", fill: str = INK, style: str = "") -> str:
        return f'<text x="{at:.1f}" y="{down:.1f}" text-anchor="{anchor}" fill="{fill}"{style}>{words}</text>'

    def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
        return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'

    end = WIDTH - RIGHT
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    parts.append(text(LEFT, 22, "Peak memory of the whole process: 25 classes on 512 x 512 x N voxels", style=_BOLD))
    for mib in range(0, int(top) + 1, STEP_MIB):
        parts.append(line(LEFT, y(mib), end, y(mib), f'stroke="{GRID}"'))
        parts.append(text(LEFT - 8, y(mib) + 4, f"{mib // 1024} GiB" if mib else "0", anchor="end"))
    for slices, *_ in rows:
        parts.append(line(x(slices), y(0), x(slices), y(0) + 5, f'stroke="{INK}"'))
        parts.append(text(x(slices), y(0) + 20, str(slices), anchor="middle"))
    parts.append(text((LEFT + end) / 2, HEIGHT - 12, "slices N", anchor="middle"))
    dashed = f'stroke="{OURS}" stroke-dasharray="5 4"'
    parts.append(line(LEFT, y(CEILING_MIB), end, y(CEILING_MIB), dashed))
    parts.append(text(LEFT + 6, y(CEILING_MIB) - 6, "--memory 1GiB", fill=OURS))
    for column, colour, name in ((2, PEER, "MONAI"), (1, OURS, "peakline")):
        points = [(x(row[0]), y(row[column])) for row in rows]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{across:.1f}" cy="{down:.1f}" r="4" fill="{colour}"/>' for across, down in points]
        across, down = points[-1]
        parts.append(text(across + 10, down - 2, name, fill=colour, style=_BOLD))
        parts.append(text(across + 10, down + 14, _size(rows[-1][column]), fill=colour))
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    style = 'font-family="Helvetica, Arial, sans-serif" font-size="13" role="img"'
    label = f"Peak memory against slices: MONAI grows to {_size(rows[-1][2])}, peakline stays below 1 GiB"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style} aria-label="{label}">'
    return "\n".join([head, *parts, "</svg>\n"])


_BOLD = ' font-weight="bold"'


def _size(mib: int) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib} MiB"


def main(argv: Sequence[str] | None = None) -> int:
    """Read the document and write the chart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("document", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(argv)
    write_text(args.output, draw(read(args.document.read_text("utf-8"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
