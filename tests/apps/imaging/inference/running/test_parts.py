"""Parts of an archive make what one process makes, and ``merge`` finds what is missing, double or made otherwise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.bench.scaling import archive as scaling
from apps.imaging.inference.running.parts import FILE, merge
from apps.imaging.inference.studies import TABLE, read_table
from common.errors import BadInput
from common.parts import Part
from tests.apps.imaging.helpers import random_model, write_nifti
from tests.messages import refused, says

Run = Callable[..., Any]
PARTS = 3


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, quick: Run) -> Path:
    """Studies, a model, the outputs of one process, and those of three parts."""
    folder = tmp_path_factory.mktemp("archive")
    random_model(folder / "model")
    random = np.random.default_rng(0)
    for number in range(5):
        # the same name in two folders
        path = folder / "in" / str(number % 2) / f"{number // 2}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, random.integers(0, 500, (20, 21, 22)).astype(np.int16))
    (folder / "in" / "bad.nii.gz").write_bytes(b"no image")
    words = ("apps.imaging", "infer", folder / "in", "-m", folder / "model", "--statistics", "-q", "-o")
    assert quick(*words, folder / "one").code == 4
    codes = [quick(*words, folder / "parts", "--part", f"{number}/{PARTS}").code for number in range(1, PARTS + 1)]
    assert sorted(codes) == [0, 0, 4]  # the bad one is in one of them
    return folder


def outputs(folder: Path) -> dict[str, bytes]:
    """Content of a folder's own files; a record has times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "run.json"}


@pytest.fixture
def parts(archive: Path, tmp_path: Path) -> Path:
    """A copy of the parts."""
    return shutil.copytree(archive / "parts", tmp_path / "parts")


def test_the_merged_folder_is_that_of_one_process(archive: Path, parts: Path, quick: Run) -> None:
    done = quick("apps.imaging", "merge", parts)
    assert done.code == 0, done.err
    says(done.out, parts / TABLE, "6 studies", "5 done", "1 failed")
    expected = outputs(archive / "one")
    assert len(expected) == 1 + 5 * 3
    assert outputs(parts) == expected
    assert (parts / TABLE).stat().st_mode & 0o777 == 0o600
    again = quick("apps.imaging", "merge", parts)  # nothing is double because it was merged before
    assert again.code == 0 and outputs(parts) == expected


def test_parts_of_several_disks_are_merged_into_another_folder(
    archive: Path, parts: Path, tmp_path: Path, quick: Run
) -> None:
    other = tmp_path / "other disk"
    other.mkdir()
    shutil.move(parts / Part(2, PARTS).name, other)
    done = quick("apps.imaging", "merge", other, parts, "-o", tmp_path / "all")
    assert done.code == 0, done.err
    assert outputs(tmp_path / "all") == outputs(archive / "one")


def test_the_parts_stay_and_a_part_is_continued(archive: Path, parts: Path, quick: Run) -> None:
    merge([parts], parts)
    for number in range(1, PARTS + 1):
        words = ("infer", archive / "in", "-m", archive / "model", "--statistics", "-o", parts)
        again = quick("apps.imaging", *words, "--part", f"{number}/{PARTS}")
        assert again.err.count("done before, skipped") == again.err.count("study-") - again.err.count("bad.nii")
    merge([parts], parts)
    assert outputs(parts) == outputs(archive / "one")


def test_a_part_without_studies_ends_well(archive: Path, tmp_path: Path, quick: Run) -> None:
    names = [str(path.relative_to(archive)) for path in (archive / "in").rglob("*.nii.gz")]
    empty = next(n for n in range(1, 41) if not any(Part(n, 40).holds(name) for name in names))
    words = ("infer", archive / "in", "-m", archive / "model", "-o", tmp_path / "out", "--part", f"{empty}/40")
    done = quick("apps.imaging", *words, "--json")
    assert done.code == 0 and done.record["results"] == {"studies": []}
    says(done.err, f"part {empty} of 40", "none of the studies")
    assert json.loads((tmp_path / "out" / Part(empty, 40).name / FILE).read_text())["studies"] == 0


def damage(parts: Path, number: int, **changes: object) -> None:
    """Change what a part says of itself."""
    path = parts / Part(number, PARTS).name / FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def busy(parts: Path) -> Path:
    """A part with finished studies."""
    return next(p for p in sorted(parts.glob("part-*")) if any(row.outputs for row in read_table(p)))


def test_what_is_missing_or_double_is_named_and_nothing_is_written(parts: Path, tmp_path: Path) -> None:
    def said(*facts: object) -> None:
        with refused(BadInput, *facts):
            merge([parts], parts)
        assert not (parts / TABLE).exists()

    kept = shutil.copytree(parts, tmp_path / "kept")

    def restored() -> None:
        shutil.rmtree(parts)
        shutil.copytree(kept, parts)

    shutil.rmtree(parts / Part(2, PARTS).name)
    said("part 2 of 3", "missing", "--part 2/3")
    restored()
    shutil.copytree(parts / Part(2, PARTS).name, parts / "part-2-of-3 (copy)")
    said("part 2 of 3", "2 times", "part-2-of-3 (copy)")
    for changes, facts in (
        ({"settings": "0" * 64}, ("another model or other options", "same command")),
        ({"inputs": "0" * 64}, ("other studies", "same command")),
        ({"of": 8}, ("8 parts", "3", "same command")),
        ({"part": 9}, (FILE,)),
        ({"studies": "x"}, (FILE,)),
        ({"studies": 50}, ("of 50 studies", "not finished", "--part 2/3")),
    ):
        restored()
        damage(parts, 2, **changes)
        said(parts / Part(2, PARTS).name, *facts)
    restored()
    (parts / Part(2, PARTS).name / FILE).write_text("[]")
    said(FILE)
    restored()
    folder = busy(parts)
    row = next(row for row in read_table(folder) if row.outputs)
    (folder / row.outputs[0]).unlink()
    said(folder, row.study, "missing", "again")
    restored()
    text = (folder / TABLE).read_text()
    (folder / TABLE).write_text(text.replace(",done,", ",started,"))
    said(folder, "not finished")
    restored()
    (parts / row.outputs[0]).write_text("another's")
    said(parts / row.outputs[0], "would replace")


def test_a_study_of_two_parts_is_named(parts: Path) -> None:
    one, *others = sorted(parts.glob("part-*"))
    folder = next(each for each in others if read_table(each))
    number = json.loads((folder / FILE).read_text())["studies"]
    source = busy(parts) if busy(parts) != folder else one
    line = next(line for line in (source / TABLE).read_text().splitlines() if "study-" in line)
    for name in next(row for row in read_table(source)).outputs:
        shutil.copy(source / name, folder)
    (folder / TABLE).write_text((folder / TABLE).read_text() + line + "\n")
    damage(parts, int(folder.name[5]), studies=number + 1)
    with refused(BadInput, "more than one part", line.split(",")[1]):
        merge([parts], parts)


@pytest.mark.parametrize(
    ("words", "code", "facts"),
    [
        (("nothing here",), 4, ("nothing here", "no such folder")),
        ((".",), 4, ("no part", "--part")),
        (("parts", "-o", "parts/part-1-of-3"), 2, ("-o", "part itself")),
        (("parts/part-1-of-3",), 2, ("-o", "part itself")),
        (("parts", "-o", "file"), 2, ("-o", "file")),
    ],
)
def test_folders_that_cannot_be_merged(
    parts: Path, quick: Run, words: tuple[str, ...], code: int, facts: tuple[object, ...]
) -> None:
    empty = parts.parent / "empty"
    (parts.parent / "file").write_text("")
    empty.mkdir()
    places = [word if word == "-o" else empty if word == "." else parts.parent / word for word in words]
    done = quick("apps.imaging", "merge", *places)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    says(done.err, *facts)


def test_parts_that_are_killed_make_the_same_archive(tmp_path: Path) -> None:
    found = scaling.killed(tmp_path, studies=4, parts=2, kills=2)
    assert found["faults"] == 0 and found["files"] == 1 + 4 * 3


def test_an_archive_that_differs_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = scaling.command

    def worse(source: Path, out: Path, *options: object) -> list[str]:
        return plain(source, out, *options, *(("--remove-small", "1000") if options else ()))

    monkeypatch.setattr(scaling, "command", worse)
    assert scaling.killed(tmp_path, studies=2, parts=2, kills=0)["faults"] > 0
