"""The part of the report that is about studies: each one's picture and table, before the memory timeline.

Only what the record names is looked at, and studies go by their numbers: no input's name gets here.
"""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from common.memory.report.page import section, table

EMBEDDED_BYTES = 8 << 20
"""Of pictures in the page; those beyond are linked to. With their encoded copies, what the page takes to make."""
MOST_ROWS = 60
"""Classes of one study's table; those beyond are in its CSV file."""
STATEMENT = "Segmentations are for research use only; this is not a medical device."
COLUMNS = ("Class", "Voxels", "ml", "Mean", "SD")


def studies(record: Mapping[str, Any], directory: Path) -> Iterator[str]:
    """One section for each study that has an outcome, in order."""
    left = EMBEDDED_BYTES
    yield f'<p class="note">{STATEMENT}</p>\n'
    for row in record.get("results", {}).get("studies", ()):
        if row["status"] == "waiting":
            continue
        parts = [_outcome(row)]
        for name in row["outputs"]:
            if name.endswith(".png"):
                picture, taken = _picture(directory / name, left)
                parts.append(picture)
                left -= taken
            elif name.endswith("-statistics.json"):
                parts.append(_statistics(directory / name))
        yield section(row["study"], *parts)


def _outcome(row: Mapping[str, Any]) -> str:
    reason = f": {row['reason']}" if row["reason"] else ""
    files = "".join(f' <a href="{escape(name)}"><code>{escape(name)}</code></a>' for name in row["outputs"])
    return f'<p class="note">{escape(row["status"] + reason)}{files}</p>'


def _picture(path: Path, left: int) -> tuple[str, int]:
    """The picture in the page if there is room for it, and the bytes that it took."""
    try:
        size = path.stat().st_size
        if size > left:
            return '<p class="note">Its picture is left to the file, to keep this page small.</p>', 0
        data = b64encode(path.read_bytes()).decode()
    except OSError:
        return '<p class="note">Its picture is not there any more.</p>', 0
    return f'<img alt="three planes with the segmentation" src="data:image/png;base64,{data}">', size


def _statistics(path: Path) -> str:
    try:
        found: Sequence[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, KeyError):
        return '<p class="note">Its statistics are not there any more.</p>'
    present = [row for row in found if row["voxels"]]
    rows = [
        (escape(row["name"]), f"{row['voxels']:,}", f"{row['volume_ml']:.2f}", f"{row['mean']:.1f}", f"{row['sd']:.1f}")
        for row in present[:MOST_ROWS]
    ]
    notes = []
    if len(present) > MOST_ROWS:
        notes.append(f"{len(present) - MOST_ROWS} more classes in {path.with_suffix('.csv').name}.")
    if absent := len(found) - len(present):
        notes.append(f"Nothing was found of {absent} of {len(found)} classes.")
    note = f'<p class="note">{escape(" ".join(notes))}</p>' if notes else ""
    return (table(COLUMNS, rows, numbers=(1, 2, 3, 4)) if rows else "") + note
