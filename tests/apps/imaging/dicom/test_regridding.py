"""Tilted and unevenly spaced slices, interpolated onto a regular grid."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.dicom.defects import Defect, Outcome, Refusal
from apps.imaging.dicom.series import open_series
from tests.apps.imaging.dicom_files import read, write_slice

BOTH = frozenset(["tilt", "spacing"])


def _ramp(folder: Path, heights: Any, tilt: float) -> Callable[[np.ndarray], np.ndarray]:
    """Slices that sample a linear function of place: any right interpolation gives it back."""
    folder.mkdir(exist_ok=True)
    gradient = np.array([3.0, -2.0, 5.0])
    function = lambda place: place @ gradient + 900  # noqa: E731
    for number, height in enumerate(heights):
        origin = np.array([-4.0, 7.0 + tilt * height, height])
        columns, rows = np.meshgrid(np.arange(24), np.arange(20))
        place = origin + columns[..., None] * [0.5, 0, 0] + rows[..., None] * [0, 0.5, 0]
        values = np.rint(function(place) * 8).astype(np.int16)
        options = {"PixelSpacing": [0.5, 0.5], "RescaleSlope": 0.125, "RescaleIntercept": 0}
        write_slice(folder / f"{number:02d}.dcm", values, origin, (1, 0, 0, 0, 1, 0), **options)
    return function


@pytest.mark.parametrize(
    ("heights", "tilt", "needed"),
    [
        (np.arange(8) * 2.0, 0.3, ["tilt"]),
        ([0, 2, 4, 8, 10, 12], 0.0, ["spacing"]),
        ([0, 1.1, 4, 6, 9, 11], 0.25, ["tilt", "spacing"]),
    ],
)
def test_a_linear_function_comes_back(tmp_path: Path, heights: Any, tilt: float, needed: list[str]) -> None:
    function = _ramp(tmp_path, heights, tilt)
    for incomplete in (frozenset(), frozenset(needed[:-1])):
        with pytest.raises(Refusal):
            open_series(tmp_path, repair=incomplete)
    volume = open_series(tmp_path, repair=frozenset(needed))
    assert {found.outcome for found in volume.layout.findings} == {Outcome.REPAIR}
    found = read(volume)
    x, y, z = np.meshgrid(*(np.arange(size) for size in volume.shape), indexing="ij")
    place = np.stack([x, y, z, np.ones_like(x)], axis=-1) @ volume.affine.T
    expected = function(place[..., :3] * [-1, -1, 1])
    inside = np.ones(volume.shape, bool)
    for height in heights:  # a voxel counts where every slice reaches: elsewhere edges are repeated
        low = 7.0 + tilt * height
        inside &= (place[..., 1] * -1 >= low) & (place[..., 1] * -1 <= low + 19 * 0.5)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.2)


def test_the_real_head_with_tilt_and_gaps(archives: Callable[[str, str], Path]) -> None:
    folder = archives("ct-ge-human", "dcm_qa_ct/In/GE")
    with pytest.raises(Refusal) as caught:
        open_series(folder)
    assert caught.value.defect is Defect.UNEVEN_SPACING
    volume = open_series(folder, repair=BOTH)
    assert volume.shape == (512, 611, 37)
    assert {found.defect for found in volume.layout.findings} == {Defect.UNEVEN_SPACING, Defect.GANTRY_TILT}
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    bone = read(volume) > 300
    assert 0.01 < bone.mean() < 0.1
    assert open_series(folder, repair=BOTH).identity() == volume.identity()
