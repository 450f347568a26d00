"""Names of studies and of their outputs, and the table of a folder that several runs write into."""

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.imaging.inference.discovery import FoundStudy, numbered
from apps.imaging.inference.outputs import LONGEST_NAME, OutputRequest, class_endings, whole_or_nothing
from apps.imaging.inference.studies import (
    Study,
    StudyTable,
    case_names,
    output_stem,
    outputs_of,
    read_table,
    stem_of,
)
from apps.imaging.volumes.nifti import open_nifti
from common.errors import BadInput
from tests.apps.imaging.helpers import write_nifti
from tests.messages import refused


def done(folder: Path, study: Study, *names: str, key: str = "k") -> Study:
    """A finished row with its files."""
    for name in names:
        (folder / name).write_text(study.input)
    return replace(study, status="done", outputs=names, key=key)


def test_an_input_keeps_its_number_and_others_have_the_next(tmp_path: Path) -> None:
    first = numbered([FoundStudy("/a"), FoundStudy("/b")])
    assert [study.study for study in first] == ["study-0001", "study-0002"]
    later = numbered([FoundStudy("/c"), FoundStudy("/b"), FoundStudy("/d")], first)
    assert [study.study for study in later] == ["study-0003", "study-0002", "study-0004"]


def test_cases_with_the_same_name_have_those_of_their_folders() -> None:
    names = case_names(["/x/1/anat/T1.nii", "/x/2/anat/T1.nii.gz", "/x/T2.nii"], several_channels=False)
    assert list(names.values()) == ["1_anat_T1", "2_anat_T1", "T2"]
    assert case_names(["/x/a_0000.nii.gz"], several_channels=True) == {"/x/a_0000.nii.gz": "a"}
    strange = case_names(["/x/=1;2\n.nii", "/x/.b.nii"], several_channels=False)
    assert list(strange.values()) == ["_1_2_", "_b"]


def test_the_name_of_a_volume_of_several_has_its_number(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", np.zeros((3, 4, 5, 2), np.int16))
    study = Study("study-0001", str(path), case="a")
    assert output_stem(study, open_nifti(path, volume=2), "0" * 64) == "a-volume2"


def test_names_of_outputs_begin_with_what_they_have_in_common() -> None:
    request = OutputRequest(types=("nifti", "dicom-seg", "dicom-rtstruct"), statistics=True, preview=True)
    names = request.names("CASE")
    assert stem_of(names) == "CASE" and all(name.startswith("CASE") for name in names)
    entry = Study("study-0001", "/CASE.nii", outputs=names).public()
    assert "CASE" not in str(entry) and entry["outputs"][0] == ".nii.gz"


def test_a_second_run_adds_to_the_table(tmp_path: Path) -> None:
    one = Study("study-0001", "/in/a.nii")
    table = StudyTable.open(tmp_path, [one])
    table.rows[0] = done(tmp_path, one, "a.nii.gz")
    table.write()
    two = Study("study-0002", "/in/b.nii")
    table = StudyTable.open(tmp_path, [two])
    table.update(0, status="started", outputs=("b.nii.gz",))
    table.rows[0] = done(tmp_path, two, "b.nii.gz")
    table.write()
    assert outputs_of(tmp_path) == {"study-0001": ("a.nii.gz",), "study-0002": ("b.nii.gz",)}
    assert StudyTable.open(tmp_path, [one]).finished(one, "k") is not None
    assert StudyTable.open(tmp_path, [two]).finished(two, "other") is None


def test_relative_inputs_are_those_of_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same name in another working directory is another input."""
    out = tmp_path / "out"
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    out.mkdir()
    monkeypatch.chdir(tmp_path / "one")
    study = Study("study-0001", "scan.nii")
    table = StudyTable.open(out, [study])
    table.rows[0] = done(out, study, "scan.nii.gz")
    table.write()
    table.claim(study, ["scan.nii.gz"])
    monkeypatch.chdir(tmp_path / "two")
    table = StudyTable.open(out, [study])
    assert table.finished(study, "k") is None
    with refused(BadInput, "scan.nii.gz", str(tmp_path / "one" / "scan.nii")):
        table.claim(study, ["scan.nii.gz"])


def test_a_file_that_no_row_names_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_text("an image")
    table = StudyTable.open(tmp_path, [Study("study-0001", str(tmp_path / "a.nii.gz"))])
    with refused(BadInput, tmp_path / "a.nii.gz", "studies.csv"):
        table.claim(table.rows[0], ["a.nii.gz"])


def test_a_failure_that_replaced_nothing_keeps_the_earlier_row(tmp_path: Path) -> None:
    study = Study("study-0001", "/in/a.nii")
    earlier = done(tmp_path, study, "a.nii.gz")
    for replaces in (False, True):
        StudyTable(tmp_path, [earlier]).write()
        table = StudyTable.open(tmp_path, [study])
        table.update(0, status="started", outputs=("a.nii.gz",), key="other")
        with pytest.raises(RuntimeError), whole_or_nothing(tmp_path, ("a.nii.gz",)):
            if replaces:
                (tmp_path / "a.nii.gz").unlink()
                (tmp_path / "a.nii.gz").write_text("half")
            raise RuntimeError
        table.update(0, status="failed", outputs=())
        states = [row.status for row in read_table(tmp_path)]
        assert states == (["failed"] if replaces else ["done", "failed"])
        assert (tmp_path / "a.nii.gz").exists() is not replaces


def test_a_full_disk_fails_a_study_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    with refused(BadInput, tmp_path) as caught, whole_or_nothing(tmp_path, ("a.nii.gz",)):
        (tmp_path / "a.nii.gz").write_text("half")
        raise OSError(errno.ENOSPC, "no")
    assert caught.value.public == "no room for a file" and not list(tmp_path.iterdir())
    with pytest.raises(PermissionError), whole_or_nothing(tmp_path, ("a.nii.gz",)):
        raise PermissionError(errno.EACCES, "no")


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    study = Study("study-0001", "/in/caf\udce9.nii")
    table = StudyTable.open(tmp_path, [study])
    table.update(0, status="failed")
    assert read_table(tmp_path)[0].input == study.input


def test_a_killed_runs_unfinished_files_are_removed(tmp_path: Path) -> None:
    for name in (".a.nii.gz.123.part", ".a.labels.nii.gz", ".studies.csv.9.part", ".mine", "a.part"):
        (tmp_path / name).write_text("x")
    StudyTable.open(tmp_path, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "a.part"]


def test_the_name_of_a_class_is_cut_to_what_a_file_name_takes() -> None:
    endings = class_endings({0: "background", 1: "spleen", 2: "a" * 300, 3: "a" * 301})
    assert endings == {1: "-spleen", 2: f"-{'a' * LONGEST_NAME}2", 3: f"-{'a' * LONGEST_NAME}3"}
