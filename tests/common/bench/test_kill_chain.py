"""A command that continues ends as an undisturbed one; one that does not is found."""

import sys
from pathlib import Path

import pytest

from common.bench.kill_chain import chain

RESUMES = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[1]); out.mkdir(exist_ok=True)
for step in range(8):
    path = out / f"{step}.txt"
    if not path.exists():
        time.sleep(0.05)
        part = out / f".{step}.part"
        part.write_text(str(step)); part.rename(path)
for part in out.glob(".*"):
    part.unlink()
(out / "seconds.txt").write_text(str(time.time()))
"""
FORGETS = RESUMES.replace('(out / "seconds.txt")', '(out / "starts.txt").open("a").write("x"); (out / "seconds.txt")')
FORGETS = FORGETS.replace("for step in range(8):", 'open(out / "begun.txt", "a").write("x")\nfor step in range(8):', 1)


@pytest.mark.parametrize(("code", "different"), [(RESUMES, []), (FORGETS, ["out/begun.txt"])])
def test_what_kills_change_is_found(tmp_path: Path, code: str, different: list[str]) -> None:
    out = tmp_path / "out"
    result = chain([sys.executable, "-c", code, str(out)], out, kills=4, seed=1)
    assert result["kills"] == 4
    assert "out/seconds.txt" not in result["compared"] and "out/7.txt" in result["compared"]
    assert result["different"] == different and result["faults"] == len(different)
    assert result["left_over"] == []
