"""DICOM folders: geometry, what is refused and in which words, and pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.dicom.selection.files import holds_dicom
from apps.imaging.dicom.series import open_series
from apps.imaging.inference.discovery import open_volume
from common.errors import BadInput
from tests.apps.imaging.dicom_files import OBLIQUE, read, series
from tests.apps.imaging.helpers import output_file, random_model
from tests.messages import refused, says


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0), OBLIQUE],
    ids=["axial", "sagittal", "mirrored", "oblique"],
)
def test_geometry_maps_every_voxel_to_its_millimetres(tmp_path: Path, orientation: Any) -> None:
    stored = series(tmp_path, orientation=orientation)
    volume = open_series(tmp_path)
    assert volume.shape == (12, 10, 6)
    np.testing.assert_array_equal(read(volume), stored - 1024.0)
    # DICOM PS3.3 C.7.6.2.1.1: column index steps along the row cosines by the column spacing.
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    for i, j, k in [(0, 0, 0), (11, 0, 0), (0, 9, 0), (3, 4, 5)]:
        expected = np.array([-40.0, 30.0, 12.0]) + row * 0.7 * i + column * 0.8 * j + normal * 2.5 * k
        found = (volume.affine @ [i, j, k, 1])[:3]
        np.testing.assert_allclose(found, expected * [-1, -1, 1], atol=1e-4)


def test_scales_that_differ_by_slice_are_applied_by_slice(tmp_path: Path) -> None:
    stored = series(tmp_path)
    import pydicom

    for number, path in enumerate(sorted(tmp_path.iterdir())):
        data = pydicom.dcmread(path)
        data.RescaleSlope, data.RescaleIntercept = 1 + number, -number
        data.save_as(path)
    volume = open_series(tmp_path)
    assert volume.dtype == np.float32
    order = [s.name for s in volume.slices]
    found = read(volume)
    for z, name in enumerate(order):
        number = int(name[:3])
        np.testing.assert_array_equal(found[..., z], stored[..., z] * (1.0 + number) - number)


def test_monochrome1_is_turned_over(tmp_path: Path) -> None:
    stored = series(tmp_path, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(open_series(tmp_path)), (-1 - stored) - 1024.0)


def test_two_series_are_listed_and_picked(tmp_path: Path) -> None:
    series(tmp_path / "a", count=3)
    series(tmp_path / "b", count=5, SeriesInstanceUID="1.2.9", Modality="MR")
    both = tmp_path / "both"
    both.mkdir()
    for folder in "ab":
        for path in (tmp_path / folder).iterdir():
            path.rename(both / f"{folder}{path.name}")
    with refused(BadInput, "2 series", "1: CT, 3 slices", "2: MR, 5 slices", "--series N|UID"):
        open_series(both)
    assert open_series(both, "2").shape[2] == 5
    assert open_series(both, "1.2.3").shape[2] == 3
    with refused(BadInput, "series '7'"):
        open_series(both, "7")


def test_real_oblique_sagittal_series(archives: Callable[[str, str], Path]) -> None:
    volume = open_series(archives("mr-t1-siemens", "SAG-anon"))
    assert volume.shape == (256, 256, 192)
    from nibabel.orientations import aff2axcodes

    assert "".join(aff2axcodes(volume.affine)) == "PIR"
    edges = np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(edges, [0.859375, 0.859375, 0.9], atol=1e-3)
    first, last = volume.slices[0], volume.slices[-1]
    for part, z in ((first, 0), (last, 191)):
        np.testing.assert_allclose((volume.affine @ [0, 0, z, 1])[:3], np.array(part.position) * [-1, -1, 1], atol=1e-3)


def test_infer_reads_a_series_and_keeps_its_geometry(quick: Any, tmp_path: Path) -> None:
    import nibabel as nib

    series(tmp_path / "study", orientation=OBLIQUE)
    random_model(tmp_path / "model", patch=(8, 8, 4), spacing=(0.7, 0.8, 2.5))
    done = quick(
        "apps.imaging",
        "infer",
        tmp_path / "study",
        "-m",
        tmp_path / "model",
        "-o",
        tmp_path / "out",
        "--preview",
        "--json",
    )
    assert done.code == 0, done.err
    written = nib.load(output_file(tmp_path / "out"))
    assert written.shape == (12, 10, 6)
    np.testing.assert_allclose(written.affine, open_volume(tmp_path / "study").affine, atol=1e-4)
    files = list((tmp_path / "out").iterdir())
    assert len(files) == 4 and not [path for path in files if b"PLANTED" in path.read_bytes()]
    shown = quick("apps.imaging", "inspect", tmp_path / "study")
    assert shown.code == 0 and "PLANTED" not in shown.out
    says(shown.out, "CT", "6 slices")
    assert holds_dicom(tmp_path / "study")
