"""The record of a command on disk, and the page that is drawn from it."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import EXIT_OK, EXIT_USAGE
from common.files import write_text
from common.memory.report.record import ABOVE, RunRecord


def write_report(path: Path, written: Mapping[str, Any], sections: Iterable[str]) -> None:
    """Write ``report.html`` next to ``run.json``, ``evaluation.html`` next to ``evaluation.json``."""
    from common.memory.report.page import render

    page = render(written, sections)
    write_text(path.with_name("report.html") if path.stem == "run" else path.with_suffix(".html"), page)


def keeps(path: Path, record: RunRecord) -> bool:
    """True if the record at ``path`` is of a run that ended well, and this one did not: its output is still there."""
    if record.error is not None and record.error["kind"] == ABOVE:  # it replaced that output
        return False
    with suppress(OSError, ValueError, TypeError):
        return record.exit_code != EXIT_OK and json.loads(path.read_text("utf-8"))["exit_code"] == EXIT_OK
    return record.exit_code == EXIT_USAGE
