"""nnU-Net's mask on disk, and images that show it to whatever reads them."""

from pathlib import Path

import numpy as np

from apps.imaging.volumes.filled import TINY, Filled, MaskFile
from apps.imaging.volumes.nifti import open_nifti
from apps.imaging.volumes.volume import blocks
from tests.apps.imaging.helpers import write_nifti


def test_zeros_inside_the_mask_are_tiny(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = (random.integers(0, 300, (9, 7, 5)) * (random.random((9, 7, 5)) < 0.6)).astype(np.int16)
    inside = random.random((9, 7, 5)) < 0.5
    volume = open_nifti(write_nifti(tmp_path / "image.nii.gz", values))
    with MaskFile(volume.shape, tmp_path) as mask:
        mask.write(inside.transpose(2, 1, 0))
        np.testing.assert_array_equal(mask.plane(3), inside[..., 3].T)
        for _ in range(2):  # the mask is read from its start by every reader
            found = np.concatenate(list(blocks(Filled(volume, mask)))).transpose(2, 1, 0)
            expected = np.where((values == 0) & inside, TINY, values.astype(np.float32))
            np.testing.assert_array_equal(found, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["image.nii.gz"]


def test_a_filled_volume_is_priced(tmp_path: Path) -> None:
    volume = open_nifti(write_nifti(tmp_path / "image.nii", np.zeros((64, 32, 4), np.int16)))
    filled = Filled(volume)
    assert (filled.shape, filled.dtype, filled.identity()) == (volume.shape, np.float32, volume.identity())
    assert filled.reader_bytes == volume.reader_bytes + 64 * 32 * (2 + 4 + 3)
