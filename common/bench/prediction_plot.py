"""Draw predicted against measured peaks as one SVG, from the lines that the prediction grids wrote.

``python -m common.bench.prediction_plot bench/prediction-*.jsonl -o docs/prediction.svg``
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from common.bench.prediction import LEAST_BYTES, read
from common.files import atomic_file
from common.memory.process.budget import MIB

SIDE, MARGIN = 480, 56
COLOURS = ("#1f6fb2", "#c4541b", "#3b8f3b", "#7a4fa3")
BAND = 0.05
"""The bound for 95 of 100 runs, drawn as two lines."""
TICKS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def draw(points: Sequence[Sequence[tuple[int, int]]], names: Sequence[str]) -> str:
    """Return the SVG: measured on the x axis, predicted on the y axis, both in MiB on logarithmic scales.

    Parameters
    ----------
    points
        For each series, (measured, predicted) in bytes.
    """
    sizes = [size / MIB for series in points for pair in series for size in pair]
    low, high = math.log2(min(sizes)) - 0.2, math.log2(max(sizes)) + 0.2

    def position(size: float) -> float:
        return (math.log2(size) - low) / (high - low) * SIDE

    def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
        ends = f'x1="{MARGIN + x1:.1f}" y1="{SIDE - y1 + 8:.1f}" x2="{MARGIN + x2:.1f}" y2="{SIDE - y2 + 8:.1f}"'
        return f"<line {ends} {style}/>"

    def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{MARGIN + x:.1f}" y="{SIDE - y + 8:.1f}" text-anchor="{anchor}">{words}</text>'

    parts = [f'<rect x="{MARGIN}" y="8" width="{SIDE}" height="{SIDE}" fill="none" stroke="#999"/>']
    for factor, style in ((1.0, 'stroke="#444"'), (1 + BAND, 'stroke="#bbb"'), (1 - BAND, 'stroke="#bbb"')):
        shift = math.log2(factor) / (high - low) * SIDE
        start, stop = max(0.0, -shift), min(SIDE, SIDE - shift)
        parts.append(line(start, start + shift, stop, stop + shift, style))
    for tick in (tick for tick in TICKS if low <= math.log2(tick) <= high):
        at = position(tick)
        parts += [text(at, -16, str(tick)), text(-6, at - 4, str(tick), "end")]
        parts.append(line(at, 0, at, 4, 'stroke="#999"'))
        parts.append(line(0, at, 4, at, 'stroke="#999"'))
    judged = position(LEAST_BYTES / MIB)
    parts.append(line(judged, 0, judged, SIDE, 'stroke="#ccc" stroke-dasharray="4 4"'))
    for series, colour in zip(points, COLOURS, strict=False):
        for measured, predicted in series:
            x, y = MARGIN + position(measured / MIB), SIDE - position(predicted / MIB) + 8
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}" fill-opacity="0.55"/>')
    for row, (name, series, colour) in enumerate(zip(names, points, COLOURS, strict=False)):
        label = text(16, SIDE - 22 - 18 * row, f"{name}: {len(series)} configurations", "start")
        parts.append(label.replace("<text ", f'<text fill="{colour}" '))
    parts.append(text(SIDE / 2, -36, "measured peak above the baseline, MiB"))
    parts.append(
        f'<text transform="translate(14 {SIDE / 2 + 8}) rotate(-90)" text-anchor="middle">predicted, MiB</text>'
    )
    size = f'width="{SIDE + MARGIN + 12}" height="{SIDE + 60}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(parts) + "\n</svg>\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Read the lines and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="JSON lines of a grid, one series per file")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(argv)
    points = [[(line["measured"], line["predicted"]) for line in read(file)] for file in args.files]
    names = [file.stem.removeprefix("prediction-") for file in args.files]
    with atomic_file(args.output) as temporary:
        temporary.write_text(draw(points, names), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
