"""The notebooks in ``docs/notebooks``, cell by cell: what they claim, they assert."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "notebooks"
NEEDED = {"segmentation": "msd-hippocampus"}
"""Notebook -> the data set that it reads."""


def cells(path: Path) -> list[tuple[int, str, str]]:
    """Line, kind (``markdown`` or ``code``) and text of each cell of a script with ``# %%`` between them."""
    found: list[tuple[int, str, str]] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(keepends=True)):
        if line.startswith("# %%"):
            found.append((number, "markdown" if line.strip().endswith("[markdown]") else "code", ""))
        else:
            start, kind, text = found[-1]
            found[-1] = (start, kind, text + line)
    return found


@pytest.mark.parametrize("name", ["estimate", "recommender", "segmentation"])
def test_every_cell_runs_and_what_it_claims_holds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Callable[[str], Path]
) -> None:
    if needed := NEEDED.get(name):
        monkeypatch.setenv("PEAKLINE_DATA", str(dataset(needed).parent))
    monkeypatch.chdir(tmp_path)
    path = FOLDER / f"{name}.py"
    names: dict[str, Any] = {"__name__": name}
    for start, kind, text in cells(path):
        if kind == "code":
            # Blank lines above, so that a traceback names the line of the file.
            exec(compile("\n" * (start + 1) + text, path, "exec"), names)


def test_notebooks_are_all_run_explain_themselves_and_claim_something() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == ["estimate", "recommender", "segmentation"]
    for path in FOLDER.iterdir():
        kinds = [kind for _, kind, _ in cells(path)]
        assert kinds[0] == "markdown" and kinds.count("markdown") >= 4
        asserts = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Assert)]
        assert len(asserts) >= 5, path
        for _, kind, text in cells(path):
            assert kind == "code" or all(line.startswith("#") or not line.strip() for line in text.splitlines()), path
            assert kind == "markdown" or text.strip(), path
