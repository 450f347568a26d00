"""Which studies the inputs hold: everything below a folder, whatever lies beside it, each once."""

import os
import zipfile
from pathlib import Path

import numpy as np

from apps.imaging.inference.discovery import find_studies, open_volume
from common.errors import BadInput
from tests.apps.imaging.dicom_files import series
from tests.apps.imaging.helpers import write_nifti
from tests.messages import refused

VOXELS = np.zeros((3, 4, 5), np.int16)


def found(*inputs: Path) -> list[str]:
    return [study.input for study in find_studies(inputs)[0]]


def test_studies_are_found_beside_and_below_each_other(tmp_path: Path) -> None:
    series(tmp_path / "in", count=3)
    series(tmp_path / "in" / "deep" / "one", count=3)
    (tmp_path / "in" / "deep" / "notes.txt").write_text("hello")
    write_nifti(tmp_path / "in" / "deep" / "b.nii.gz", VOXELS)
    write_nifti(tmp_path / "in" / "a.nii", VOXELS)
    (tmp_path / "in" / ".hidden").mkdir()
    write_nifti(tmp_path / "in" / ".hidden" / "c.nii", VOXELS)
    names = ["", "a.nii", "deep/b.nii.gz", "deep/one"]
    assert found(tmp_path / "in") == [str(tmp_path / "in" / name) for name in names]
    assert found(tmp_path / "in", tmp_path / "in" / "a.nii") == found(tmp_path / "in")


def test_links_are_followed_and_never_twice(tmp_path: Path) -> None:
    series(tmp_path / "elsewhere" / "one", count=3)
    (tmp_path / "in").mkdir()
    os.symlink("../elsewhere", tmp_path / "in" / "link")
    os.symlink("..", tmp_path / "elsewhere" / "one" / "up")
    os.symlink("nowhere.nii", tmp_path / "in" / "broken.nii")
    studies, left_out = find_studies([tmp_path / "in"])
    assert [study.input for study in studies] == [str(tmp_path / "in" / "link" / "one")]
    assert [one.path for one in left_out] == [str(tmp_path / "in" / "broken.nii")]


def test_other_formats_are_named(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", VOXELS)
    for name in ("b.mnc", "c.MNC", "d.img", "e.nii.bz2", "f.json"):
        (tmp_path / name).write_bytes(b"x")
    _, left_out = find_studies([tmp_path])
    assert [Path(one.path).name for one in left_out] == ["b.mnc", "c.MNC", "d.img", "e.nii.bz2"]
    (tmp_path / "a.nii").unlink()
    with refused(BadInput, tmp_path, "no images", "b.mnc"):
        find_studies([tmp_path])


def test_the_folders_of_a_zip_are_studies_of_their_own(tmp_path: Path) -> None:
    series(tmp_path / "in" / "a", count=3)
    stored = series(tmp_path / "in" / "b", count=4, seed=1, SeriesInstanceUID="1.2.4")
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((tmp_path / "in").rglob("*.dcm")):
            archive.write(file, file.relative_to(tmp_path / "in"))
    assert found(path) == [str(path / "a"), str(path / "b")]
    assert open_volume(path / "b").shape == stored.shape
    assert found(path / "b") == [str(path / "b")]
    with refused(BadInput, path / "c", "no DICOM"):
        open_volume(path / "c")


def test_one_series_in_several_folders_of_a_zip_is_one_study(tmp_path: Path) -> None:
    series(tmp_path / "in", count=4)
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for number, file in enumerate(sorted((tmp_path / "in").iterdir())):
            archive.write(file, f"{number}/0001.dcm")
    assert found(tmp_path / "export.zip") == [str(tmp_path / "export.zip")]
    assert open_volume(tmp_path / "export.zip").shape[2] == 4
