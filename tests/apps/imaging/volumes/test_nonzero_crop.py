"""The box of voxels that are not zero, the volume inside it, and labels back onto the whole."""

from pathlib import Path

import numpy as np

from apps.imaging.volumes.nifti import open_nifti
from apps.imaging.volumes.nonzero_crop import Content, Cropped, content, uncropped, union
from apps.imaging.volumes.volume import blocks
from tests.apps.imaging.helpers import write_nifti


def test_the_box_that_is_not_zero(tmp_path: Path) -> None:
    values = np.zeros((9, 8, 10), np.int16)
    values[2:7, 1:5, 3:9] = np.arange(1, 121).reshape(5, 4, 6)
    volume = open_nifti(write_nifti(tmp_path / "image.nii", values))
    found = content(volume.shape, blocks(volume))
    assert (found.low, found.high, found.limits) == ((2, 1, 3), (7, 5, 9), (0.0, 120.0))
    box = Cropped(volume, found.low, found.high)
    inside = np.concatenate(list(blocks(box)))
    np.testing.assert_array_equal(inside.transpose(2, 1, 0), values[2:7, 1:5, 3:9])
    np.testing.assert_allclose(box.affine[:3, 3], volume.affine[:3, :3] @ [2, 1, 3] + volume.affine[:3, 3])
    labels = (values[2:7, 1:5, 3:9] % 3).astype(np.uint8)
    planes = uncropped([labels[..., :4], labels[..., 4:]], volume.shape, found.low, np.dtype(np.uint8))
    whole = np.concatenate(list(planes), axis=2)
    np.testing.assert_array_equal(whole, np.where(values > 0, values % 3, 0))


def test_the_box_of_several_channels() -> None:
    one, two = Content((2, 1, 3), (7, 5, 9), (0.0, 4.0)), Content((4, 0, 3), (8, 4, 9), (-1.0, 0.0))
    assert union([one, two]) == ((2, 0, 3), (8, 5, 9))
    empty = Content((0, 0, 0), (20, 20, 20), (0.0, 0.0))
    assert union([one, empty]) == ((2, 1, 3), (7, 5, 9))
    assert union([empty, empty]) == ((0, 0, 0), (20, 20, 20))
