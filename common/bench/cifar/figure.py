"""Draw accuracy and memory of several runs: ``python -m common.bench.cifar.figure NAME=FILE ... > figure.svg``.

A file is the JSON line that ``common.bench.cifar.plain`` printed, or a run record of ``common.bench.cifar.train``.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.memory.process.budget import MIB

COLORS = ("#555555", "#1f77b4", "#d1495b", "#2a9d8f")
DASHES = ("", "3 5", "", "6 3")
"""The first two curves coincide; dashes keep both visible."""
WIDTH, HEIGHT, LEFT, TOP, PLOT = 720, 300, 48, 34, 220


def read(path: Path) -> Mapping[str, Any]:
    """Return the results from either kind of file."""
    content = json.loads(path.read_text("utf-8"))
    results: Mapping[str, Any] = content.get("results", content)
    return results


def curves(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Draw the test accuracy by epoch."""
    parts = [_text(LEFT, 20, "test accuracy by epoch", weight="bold")]
    for share in (0.4, 0.6, 0.8):
        y = TOP + PLOT * (1 - share)
        parts += [f'<path d="M{LEFT} {y:.0f}h300" stroke="#ddd"/>', _text(LEFT - 30, y + 4, f"{share:.1f}")]
    for (name, run), color, dash in zip(runs.items(), COLORS, DASHES, strict=False):
        values = run["accuracies"]
        points = " ".join(
            f"{LEFT + 300 * (epoch + 1) / len(values):.1f},{TOP + PLOT * (1 - value):.1f}"
            for epoch, value in enumerate(values)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2.5"')
        parts.append(f' stroke-dasharray="{dash}"><title>{name}: {values[-1]:.4f}</title></polyline>')
    parts += [_text(LEFT, TOP + PLOT + 18, "1"), _text(LEFT + 288, TOP + PLOT + 18, "10")]
    return parts


def bars(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Draw the peaks above the baseline."""
    left = LEFT + 350
    most = max(run["above_floor_bytes"] for run in runs.values())
    parts = [_text(left, 20, "peak above the baseline", weight="bold")]
    for row, ((name, run), color) in enumerate(zip(runs.items(), COLORS, strict=False)):
        y, width = TOP + 10 + row * 54, 220 * run["above_floor_bytes"] / most
        size = f"{run['above_floor_bytes'] / MIB:.0f} MiB"
        parts += [_text(left, y, f"{name}, accuracy {run['accuracy']:.3f}")]
        parts += [f'<rect x="{left}" y="{y + 6}" width="{width:.1f}" height="20" fill="{color}"/>']
        parts += [_text(left + width + 6, y + 21, size)]
    return parts


def _text(x: float, y: float, text: str, *, weight: str = "normal") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-weight="{weight}">{text}</text>'


def main(arguments: Sequence[str]) -> int:
    """Write the figure to stdout; ``arguments`` are ``NAME=FILE``."""
    runs = {name: read(Path(path)) for name, _, path in (argument.partition("=") for argument in arguments)}
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12" fill="#333"'
    body = "\n".join([*curves(runs), *bars(runs)])
    sys.stdout.write(f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n')
    sys.stdout.write(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n')
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
