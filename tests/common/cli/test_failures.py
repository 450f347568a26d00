"""Endings that no command foresees: which of them are the user's to change."""

import errno
from argparse import Namespace
from pathlib import Path

import pytest

from common.cli import failures
from common.errors import EXIT_UNFORESEEN, EXIT_USAGE


@pytest.mark.parametrize("place", ["out/model", "out/.model.17.part", "out", "out/model/weights", "."])
def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path: Path, place: str) -> None:
    output = tmp_path / "out" / "model"
    error = OSError(errno.EROFS, "Read-only file system", str(tmp_path / place))
    code, line, found = failures.describe(error, Namespace(output=output, verbose=False))
    assert code == EXIT_USAGE and found["kind"] == "usage" and str(tmp_path) not in found["message"]
    assert line == f"-o {output}: cannot be written: Read-only file system; choose another place"


def test_other_places_and_other_reasons_are_defects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    output = tmp_path / "out" / "model"
    for error in (
        PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "input")),
        PermissionError(errno.EACCES, "Permission denied"),
        FileNotFoundError(errno.ENOENT, "No such file", str(output)),
        ValueError("odd"),
    ):
        code, line, found = failures.describe(error, Namespace(output=output, verbose=False))
        assert code == EXIT_UNFORESEEN and "traceback in" in line and found["kind"] == type(error).__name__
