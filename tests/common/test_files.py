import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UsageError
from common.files import atomic_file, no_room, sole_writer, write_text
from tests.messages import refused, says

HOLD = """
import sys, time
from pathlib import Path
from common.files import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_directory_has_one_writer_at_a_time(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with refused(UsageError, place, "writing"), sole_writer(place):
            pass
        other.kill()
    with sole_writer(place):  # the kernel let go of it
        (place / "file").touch()
    assert (place / "file").exists()


def test_a_directory_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with refused(UsageError, tmp_path / "file"), sole_writer(tmp_path / "file"):
        pass


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Calls to the kernel in order: synced files with their content at that time, and renames."""
    found: list[tuple[object, ...]] = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        found.append(("sync", path, path.read_bytes() if path.is_file() else None))
        fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        found.append(("rename", Path(source), Path(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    return found


def test_a_file_is_written_synced_and_then_renamed(tmp_path: Path, calls: list[tuple[object, ...]]) -> None:
    """Were it renamed first, a power failure could leave an empty file under the final name."""
    path = tmp_path / "out" / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("complete")
        assert temporary.parent == path.parent and not path.exists()
    assert calls == [("sync", temporary, b"complete"), ("rename", temporary, path), ("sync", path.parent, None)]
    assert [one.name for one in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_that_cannot_be_synced_or_renamed_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="Input"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_second_training_into_the_same_folder_is_refused(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    events = tmp_path / "events.csv"
    events.write_text("user,item\n" + "".join(f"{user},{user * item % 7}\n" for user in range(20) for item in range(9)))
    command = ("apps.recsys", "train", events, "-o", tmp_path / "model", "--model", "ials", "--set", "iterations=2")
    with sole_writer(tmp_path / "model"):
        second = run(*command)
        assert second.code == 2
        says(second.err, tmp_path / "model", "writing")
        assert len(second.err.splitlines()) == 1 and not list((tmp_path / "model").iterdir())
        (tmp_path / "model" / "keep").touch()
    assert run(*command).code == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_in_one_line(tmp_path: Path, number: int) -> None:
    line = no_room(OSError(number, "no"), tmp_path / "not" / "made")
    assert line is not None and len(line.splitlines()) == 1
    says(line, tmp_path)
    assert no_room(PermissionError(errno.EACCES, "no"), tmp_path) is None
