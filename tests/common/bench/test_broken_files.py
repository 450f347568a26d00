"""Damage changes one file of a copy, the same each time, and an undocumented end is found."""

from pathlib import Path

import pytest

from common.bench.forced.broken_files import _fault, campaign, copy_with_damage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    for name in ("a.bin", "b.bin"):
        (made / name).write_bytes(bytes(range(256)) * 4)
    return made


def test_one_file_of_a_copy_is_damaged(folder: Path, tmp_path: Path) -> None:
    damaged = set()
    for number in range(20):
        copy = tmp_path / f"copy{number}"
        path = copy_with_damage(folder, copy, number)
        changed = [each.name for each in copy.iterdir() if each.read_bytes() != (folder / each.name).read_bytes()]
        assert set(changed) <= {path.name}
        damaged |= set(changed)
        again = copy_with_damage(folder, tmp_path / f"again{number}", number)
        assert again.name == path.name and again.read_bytes() == path.read_bytes()
    assert damaged == {"a.bin", "b.bin"}


@pytest.mark.parametrize(
    ("code", "text", "fault"),
    [(0, "", ""), (4, "one line", ""), (1, "no", "exit 1: no"), (4, "Traceback (most", "a traceback")],
)
def test_faults(code: int, text: str, fault: str) -> None:
    assert _fault(code, text).startswith(fault) and bool(_fault(code, text)) == bool(fault)


def test_a_command_that_ends_otherwise_is_counted(folder: Path) -> None:
    """The command is Python's own, which has no exit codes of ours: 1 for a file that it cannot read."""
    result = campaign(folder, lambda copy: ["json.tool", copy / "a.bin"], 2)
    assert result["runs"] == 2 and result["failed"] == 2 and result["exits"] == {"1": 2}
