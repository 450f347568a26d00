"""Files that should be DICOM and are not: none is left out silently."""

from pathlib import Path

import pytest

from apps.imaging.dicom.defects import Defect, Refusal
from apps.imaging.dicom.selection.files import holds_dicom
from apps.imaging.dicom.series import open_series
from tests.apps.imaging.dicom_files import series


@pytest.mark.parametrize("ending", [".dcm", ""])
@pytest.mark.parametrize("content", [b"", bytes(100), bytes(5000), b"<html>" * 100])
@pytest.mark.parametrize("number", [0, 5])
def test_a_damaged_slice_is_named(tmp_path: Path, ending: str, content: bytes, number: int) -> None:
    series(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / f"IM{path.stem}{ending}")
    name = f"IM{number:03d}{ending}"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refusal) as caught:
        open_series(tmp_path)
    assert name in str(caught.value) and caught.value.defect in (Defect.TRUNCATED, Defect.CORRUPT)


def test_what_is_named_otherwise_does_not_matter(tmp_path: Path) -> None:
    series(tmp_path)
    for name in ("index.html", "notes.txt", "DICOMDIR", "empty"):
        (tmp_path / name).write_bytes(b"" if name == "empty" else b"x" * 300)
    assert open_series(tmp_path).shape[2] == 6


def test_a_folder_of_empty_slices_holds_dicom(tmp_path: Path) -> None:
    (tmp_path / "1.dcm").write_bytes(b"")
    assert holds_dicom(tmp_path)
    with pytest.raises(Refusal, match="empty"):
        open_series(tmp_path)
