"""Random studies are what they say, and a few random commands keep the promise."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from hypothesis import given, settings

from apps.imaging.bench.robustness.random_commands import CompressSession, compressions, segmentations
from apps.imaging.bench.robustness.random_studies import Volume
from apps.imaging.cli import parser
from tests.common.bench.drawn import keep_the_promise


def test_a_volume_is_what_its_description_says(tmp_path: Path) -> None:
    described = Volume((12, 14, 16), (0.7, 1.3, 2.5), "uint8", "PIR", 0.2, "nii.gz", scaled=True)
    image: Any = nib.load(described.write(tmp_path, "a"))
    assert image.header.get_data_dtype() == np.uint8 and image.shape == (14, 16, 12)
    assert "".join(nib.aff2axcodes(image.affine)) == "PIR"
    assert np.allclose(image.header.get_zooms(), (1.3, 2.5, 0.7))
    plain: Any = nib.load(Volume((12, 14, 16), (0.7, 1.3, 2.5), tilt=0.2).write(tmp_path, "b"))
    back = image.as_reoriented(nib.io_orientation(image.affine))
    assert np.allclose(back.affine, plain.affine, atol=1e-5)
    assert np.corrcoef(back.get_fdata().ravel(), plain.get_fdata().ravel())[0, 1] > 0.999


def test_a_series_has_a_file_for_each_slice(tmp_path: Path) -> None:
    folder = Volume((12, 14, 5), (0.7, 1.3, 2.5), form="dicom").write(tmp_path, "a")
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    assert [float(one.ImagePositionPatient[2]) for one in slices] == [0, 2.5, 5, 7.5, 10]
    assert {(one.Rows, one.Columns) for one in slices} == {(14, 12)}
    assert len({one.SeriesInstanceUID for one in slices}) == 1
    assert len({one.SOPInstanceUID for one in slices}) == 5


def test_random_commands_keep_the_promise() -> None:
    keep_the_promise("imaging", segmentations())


@settings(max_examples=30, deadline=None)
@given(compressions())
def test_every_option_of_a_smaller_network_can_be_drawn(session: CompressSession) -> None:
    args = parser().parse_args(["compress", "hippocampus", "-o", "out", *session.compress, *session.on_images])
    assert getattr(args, "run", None) is None  # one stage, which keeps a record
