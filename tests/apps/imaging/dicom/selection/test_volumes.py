"""Which frames of a folder are the volume: of several series, and of several volumes in one."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from apps.imaging.dicom.defects import Defect, Refusal
from apps.imaging.dicom.series import open_series
from common.errors import BadInput
from tests.apps.imaging.dicom_files import read, series, write_slice
from tests.messages import refused, says


def several(folder: Path, values: list[dict[str, Any]]) -> list[np.ndarray]:
    """A series of as many volumes as there are values, at the same places; returns their voxels."""
    volumes = []
    for number, fields in enumerate(values):
        volumes.append(series(folder / "part", seed=number, **fields) - 1024.0)
        for path in list((folder / "part").iterdir()):
            path.rename(folder / f"{number}{path.name}")
        (folder / "part").rmdir()
    return volumes


@pytest.mark.parametrize(
    ("values", "says_so"),
    [
        ([{"DiffusionBValue": 1000.0}, {"DiffusionBValue": 0.0}], ("b-value", "0, 1000")),
        ([{"EchoTime": "10"}, {"EchoTime": "4.5"}], ("echo time", "4.5, 10")),
        ([{"TemporalPositionIdentifier": 2}, {"TemporalPositionIdentifier": 1}], ("temporal position", "1, 2")),
        ([{"AcquisitionTime": "120500"}, {"AcquisitionTime": "120400"}], ("acquisition time", "--volume")),
    ],
)
def test_volumes_are_told_apart_and_picked(tmp_path: Path, values: list[dict[str, Any]], says_so: Any) -> None:
    later, earlier = several(tmp_path, values)
    with pytest.raises(Refusal) as caught:
        open_series(tmp_path)
    assert caught.value.defect is Defect.SEVERAL_VOLUMES
    says(caught.value, "2 volumes of 6 slices", "--volume K", *says_so)
    one, two = (open_series(tmp_path, volume=number) for number in (1, 2))
    np.testing.assert_array_equal(read(one), earlier)
    np.testing.assert_array_equal(read(two), later)
    assert one.identity() != two.identity()
    with refused(BadInput, "no volume 3", "2"):
        open_series(tmp_path, volume=3)


def test_volumes_without_a_difference_go_by_instance_number(tmp_path: Path) -> None:
    first, second = several(tmp_path, [{}, {}])
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        data.InstanceNumber = 100 - int(path.name[0])
        data.save_as(path)
    with refused(BadInput, "InstanceNumber", "--volume"):
        open_series(tmp_path)
    np.testing.assert_array_equal(read(open_series(tmp_path, volume=1)), second)
    np.testing.assert_array_equal(read(open_series(tmp_path, volume=2)), first)


def test_a_volume_of_which_a_slice_is_absent_is_a_duplicate(tmp_path: Path) -> None:
    several(tmp_path, [{"EchoTime": "1"}, {"EchoTime": "2"}])
    next(tmp_path.iterdir()).unlink()
    with pytest.raises(Refusal) as caught:
        open_series(tmp_path)
    assert caught.value.defect is Defect.DUPLICATE


def test_a_series_of_one_volume_has_a_first_and_no_second(tmp_path: Path) -> None:
    series(tmp_path)
    assert open_series(tmp_path, volume=1).findings == open_series(tmp_path).findings
    with refused(BadInput, "no volume 2"):
        open_series(tmp_path, volume=2)


def test_what_is_no_volume_does_not_stop_a_folder(tmp_path: Path) -> None:
    stored = series(tmp_path)
    place = ((0, 0, 0), (1, 0, 0, 0, 0, -1))
    pixels = np.zeros((8, 9), np.int16)
    write_slice(tmp_path / "scout.dcm", pixels, *place, SeriesInstanceUID="1.9", ImageType=["ORIGINAL", "LOCALIZER"])
    write_slice(tmp_path / "shot.dcm", pixels, *place, SeriesInstanceUID="1.8", ImagePositionPatient=None)
    volume = open_series(tmp_path)
    np.testing.assert_array_equal(read(volume), stored - 1024.0)
    notes = " ".join(str(finding) for finding in volume.findings)
    says(notes, "left out", "localizer", "without positions")
    for path in tmp_path.glob("0*.dcm"):
        path.unlink()
    with pytest.raises(Refusal) as caught:
        open_series(tmp_path)
    assert caught.value.defect is Defect.NO_VOLUME
