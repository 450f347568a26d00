"""The studies' part of the report: picture and table of each, in front of the memory timeline.

Only files that ``studies.csv`` names are read, and studies have numbers: no input's name appears.
"""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from apps.imaging.inference.studies import outputs_of
from common.memory.report.page import section, table

EMBEDDED_BYTES = 8 << 20
"""Bytes of pictures inside the page; further ones are links. Their encoded copies decide the memory of the report."""
MOST_ROWS = 60
"""Most rows of a study's table; further classes are in its CSV file."""
STATEMENT = "Segmentations are for research use only; this is not a medical device."
COLUMNS = ("Class", "Voxels", "ml", "Mean", "SD")


def studies(record: Mapping[str, Any], directory: Path) -> Iterator[str]:
    """HTML sections, one for each study that was tried.

    Parameters
    ----------
    record
        ``run.json``.
    directory
        The folder of the record and of the outputs.
    """
    left, outputs = EMBEDDED_BYTES, outputs_of(directory)
    yield f'<p class="note">{STATEMENT}</p>\n'
    for row in record.get("results", {}).get("studies", ()):
        if row["status"] == "waiting":
            continue
        content = [_outcome(row)]
        for name in outputs.get(row["study"], ()) if row["outputs"] else ():
            if name.endswith(".png"):
                picture, taken = _picture(directory / name, left)
                content.append(picture)
                left -= taken
            elif name.endswith("-statistics.json"):
                content.append(_statistics(directory / name))
        yield section(row["study"], *content)


def _outcome(row: Mapping[str, Any]) -> str:
    reason = f": {row['reason']}" if row["reason"] else ""
    files = f"; files: {', '.join(row['outputs'])}" if row["outputs"] else ""
    return f'<p class="note">{escape(row["status"] + reason + files)}</p>'


def _picture(path: Path, left: int) -> tuple[str, int]:
    """The picture as HTML, inside the page if it has at most ``left`` bytes; and the bytes that it took."""
    try:
        size = path.stat().st_size
        if size > left:
            return '<p class="note">The picture stays in its file, to keep this page small.</p>', 0
        data = b64encode(path.read_bytes()).decode()
    except OSError:
        return '<p class="note">The picture is missing.</p>', 0
    return f'<img alt="three planes with the segmentation" src="data:image/png;base64,{data}">', size


def _statistics(path: Path) -> str:
    try:
        classes: Sequence[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, KeyError):
        return '<p class="note">The statistics are missing.</p>'
    present = [row for row in classes if row["voxels"]]
    rows = [
        (escape(row["name"]), f"{row['voxels']:,}", f"{row['volume_ml']:.2f}", f"{row['mean']:.1f}", f"{row['sd']:.1f}")
        for row in present[:MOST_ROWS]
    ]
    notes = []
    if len(present) > MOST_ROWS:
        notes.append(f"{len(present) - MOST_ROWS} more classes in its CSV file.")
    if absent := len(classes) - len(present):
        notes.append(f"{absent} of {len(classes)} classes have no voxel.")
    note = f'<p class="note">{escape(" ".join(notes))}</p>' if notes else ""
    return (table(COLUMNS, rows, numbers=(1, 2, 3, 4)) if rows else "") + note
