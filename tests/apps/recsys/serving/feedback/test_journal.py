"""The log of feedback: appended to whole, mended after a crash, read by several, and refused when it is no log."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.recsys.serving.feedback.journal import READ_BYTES, Event, Journal, NoRoom
from common.errors import BadInput
from tests.messages import refused

COLUMNS: dict[str, str | None] = {"user": "member", "item": "film", "value": "stars", "time": None}


def journal(path: Path, *, whole: tuple[bool, bool] = (False, True), columns: Any = COLUMNS) -> Journal:
    """A log with some columns."""
    return Journal(path, columns, whole=whole, sync=False)


def events(count: int, start: int = 0) -> list[Event]:
    """Different events."""
    return [Event(f"mémber {n}", str(n % 7), 1 + n % 3, 1e9 + n, f"e{n}") for n in range(start, start + count)]


def written(log: Journal, some: list[Event]) -> None:
    """Append events as the server does."""
    with log.appending():
        list(log.read())
        log.append(some)


def test_what_was_written_is_read_in_order_by_everybody_once(tmp_path: Path) -> None:
    first, second = journal(tmp_path / "log"), journal(tmp_path / "log")
    written(first, events(3))
    assert not first.grown() and second.grown()
    assert list(second.read()) == events(3) and not second.grown()
    written(second, events(2, 3))
    assert list(first.read()) == events(2, 3)
    first.rewind(None)
    assert list(first.read()) == events(5)


@pytest.mark.parametrize(
    "text", [b"precious notes\nline two without newline", b"one line", b'{"stars": 1}\n{"mem', b"user,film\n1,2\n{"]
)
def test_nothing_is_cut_off_a_file_that_is_no_log(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "notes").write_bytes(text)
    with refused(BadInput, "notes", "not a log of feedback"):
        journal(tmp_path / "notes").mend()
    assert (tmp_path / "notes").read_bytes() == text


def test_lines_are_those_of_the_models_columns(tmp_path: Path) -> None:
    log = journal(tmp_path / "log")
    written(log, [Event("a", "7", 2.0, 5.0, "x"), Event("b", "8", 1.0, 6.0)])
    assert (tmp_path / "log").read_text() == (
        '{"member": "a", "film": 7, "stars": 2.0, "time": 5.0, "event": "x"}\n'
        '{"member": "b", "film": 8, "stars": 1.0, "time": 6.0}\n'
    )
    bare = journal(tmp_path / "bare", columns={**COLUMNS, "value": None})
    written(bare, [Event("a", "7", 1.0, 5.0)])
    assert (tmp_path / "bare").read_text() == '{"member": "a", "film": 7, "time": 5.0}\n'
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


@given(cut=st.integers(0, 400))
def test_a_torn_tail_is_cut_back_to_the_last_whole_line(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "log"
    log = journal(path)
    written(log, events(4))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - min(cut, len(whole))])
    lines = path.read_bytes().count(b"\n")
    again = journal(path)
    torn = path.read_bytes().rpartition(b"\n")[2]
    assert again.mend() == len(torn)
    assert list(again.read()) == events(lines)
    written(again, events(1, 9))
    assert list(journal(path).read()) == [*events(lines), *events(1, 9)]


def test_a_long_torn_tail_and_one_without_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written(journal(path), events(2))
    with path.open("ab") as stream:
        stream.write(b"\0" * (2 * READ_BYTES + 5))
    log = journal(path)
    assert log.mend() == 2 * READ_BYTES + 5
    assert list(log.read()) == events(2)
    path.write_bytes(b"{")
    assert journal(path).mend() == 1 and path.stat().st_size == 0
    assert journal(path).mend() == 0


@pytest.mark.parametrize("kept", [0, 10])
def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    path, write = tmp_path / "log", os.write
    log = journal(path)
    written(log, events(2))

    def full(file: int, text: bytes) -> int:
        if not kept:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, text[:kept])

    monkeypatch.setattr("os.write", full)
    with pytest.raises(NoRoom):
        written(log, events(1, 2))
    monkeypatch.undo()
    assert list(journal(path).read()) == events(2)
    written(log, events(1, 2))
    assert list(journal(path).read()) == events(3)


@pytest.mark.parametrize(
    "line", ["{}", "1,2,3", '{"member": 1, "film": 2, "stars": "many", "time": 3}', "\xff", "[" * 9999]
)
def test_what_is_no_log_is_refused_with_its_place(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log"
    written(journal(path), events(1))
    size = path.stat().st_size
    with path.open("a", encoding="latin-1") as stream:
        stream.write(line + "\n")
    with refused(BadInput, "log", "member, film, stars", f"byte {size}"):
        list(journal(path).read())


def test_a_log_that_was_cut_by_another_is_refused(tmp_path: Path) -> None:
    log = journal(tmp_path / "log")
    written(log, events(3))
    os.truncate(tmp_path / "log", 10)
    with refused(BadInput, "log", "byte"):
        list(log.read())


def test_a_folder_is_no_log(tmp_path: Path) -> None:
    with refused(BadInput, str(tmp_path)):
        journal(tmp_path)
