"""``imaging infer --channel``: the series of a DICOM study as the channels of a model, against the same as files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.inference.discovery import open_volume
from common.errors import EXIT_BAD_INPUT, BadInput, UsageError
from tests.apps.imaging import in_process
from tests.apps.imaging.dicom_files import read, series
from tests.apps.imaging.helpers import output_file, random_model, read_labels, write_nifti
from tests.messages import refused

PLANE, COUNT = (20, 18), 12
STUDY = "1.2.840.1"
FRAME = {"FrameOfReferenceUID": "1.2.840.9"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    random_model(directory, channels=("T1", "T2"), spacing=(0.7, 0.8, 2.5))
    return directory


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of two registered series, and one that is neither, each in a folder of its own."""
    described = {"a": "t2_tse tra", "b": "T1 pre", "c": "T1C"}
    for number, (folder, text) in enumerate(described.items()):
        uids = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": f"1.2.{number}", "SeriesDescription": text, **FRAME}
        series(tmp_path / "study" / folder, plane=PLANE, count=COUNT, seed=number, **uids)
    return tmp_path / "study"


def as_files(study: Path, folder: Path) -> Path:
    """The same as CASE_0000.nii.gz (T1) and CASE_0001.nii.gz (T2)."""
    folder.mkdir()
    for number, name in enumerate("ba"):
        volume = open_volume(study / name)
        write_nifti(folder / f"case_{number:04d}.nii.gz", read(volume), volume.affine)
    return folder


def infer(study: Path, model: Path, out: Path, *channels: str) -> None:
    words = [word for channel in channels for word in ("--channel", channel)]
    in_process.done("infer", study, "-m", model, "-o", out, *words)


def test_series_are_the_channels_that_are_asked_for(study: Path, model: Path, tmp_path: Path) -> None:
    infer(study, model, tmp_path / "dicom", "1=1.2.0", "T1=t1")
    infer(as_files(study, tmp_path / "files"), model, tmp_path / "nifti")
    found = read_labels(output_file(tmp_path / "dicom"))
    assert len(np.unique(found)) > 1
    assert np.array_equal(found, read_labels(output_file(tmp_path / "nifti")))


def test_series_of_one_folder_by_number_and_as_dicom(quick: Any, study: Path, model: Path, tmp_path: Path) -> None:
    for folder in "bc":
        for path in (study / folder).iterdir():
            path.rename(study / "a" / f"{folder}{path.name}")
        (study / folder).rmdir()
    objects = ("--output-type", "nifti,dicom-seg", "--memory", "1GiB", "--quiet")
    done = quick(
        *("apps.imaging", "infer", study, "-m", model, "-o", tmp_path / "out", "--channel", "T1=2"),
        *("--channel", "T2=1", *objects),
    )
    assert done.code == 0, done.err
    import pydicom

    written = pydicom.dcmread(output_file(tmp_path / "out", ending=".seg.dcm"))
    assert [one.SeriesInstanceUID for one in written.ReferencedSeriesSequence] == ["1.2.1"]


@pytest.mark.parametrize(
    ("channels", "code", "words"),
    [
        (("T1=t1",), 2, ("no series for T2", "0=T1, 1=T2")),
        (("T1=t1", "FLAIR=x"), 2, ("no such channel", "0=T1, 1=T2")),
        (("T1=t1", "T1=1.2.0"), 2, ("given twice",)),
        (("T1=t1", "T2=flair"), 4, ("channel T2: no series", "12 slices")),
        (("T1=t1", "T2=1"), 4, ("several folders",)),
        (("T1=t1", "T2=1.2.1"), 4, ("T1", "T2", "both series")),
        ((), 4, ("--channel NAME=SERIES",)),
    ],
)
def test_a_channel_without_a_series_of_its_own_is_refused(
    study: Path, model: Path, tmp_path: Path, channels: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    with refused(BadInput if code == EXIT_BAD_INPUT else UsageError, *words) as caught:
        infer(study, model, tmp_path / "out", *channels)
    assert "t2_tse" not in str(caught.value)  # a description may name a person


def test_series_on_other_grids_are_refused(study: Path, model: Path, tmp_path: Path) -> None:
    for path in (study / "a").iterdir():
        path.unlink()
    uids = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": "1.2.0", "SeriesDescription": "t2", **FRAME}
    series(study / "a", plane=PLANE, count=COUNT, step=2.4, **uids)
    with refused(BadInput, study / "a", "not on the grid", "resample"):
        infer(study, model, tmp_path / "out", "T1=t1", "T2=t2")


def test_series_of_other_frames_of_reference_are_refused(study: Path, model: Path, tmp_path: Path) -> None:
    for path in (study / "a").iterdir():
        path.unlink()
    uids = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": "1.2.0", "SeriesDescription": "t2"}
    series(study / "a", plane=PLANE, count=COUNT, **uids, FrameOfReferenceUID="1.2.840.8")
    with refused(BadInput, "channels T1 and T2", "frames of reference"):
        infer(study, model, tmp_path / "out", "T1=t1", "T2=t2")


def test_studies_are_told_apart_and_not_mixed(study: Path, model: Path, tmp_path: Path) -> None:
    for number, folder in enumerate(("d", "e")):
        uids = {
            "StudyInstanceUID": "1.2.840.2",
            "SeriesInstanceUID": f"1.3.{number}",
            "SeriesDescription": f"T{number + 1}",
        }
        series(study / folder, plane=PLANE, count=COUNT, seed=5 + number, **uids)
    infer(study, model, tmp_path / "out", "T1=t1", "T2=t2")
    assert not np.array_equal(read_labels(output_file(tmp_path / "out")), read_labels(output_file(tmp_path / "out", 2)))
    for path in (study / "d").iterdir():
        path.rename(study / "a" / f"d{path.name}")
    with refused(BadInput, "2 studies in one folder"):
        infer(study, model, tmp_path / "other", "T1=t1", "T2=t2")
