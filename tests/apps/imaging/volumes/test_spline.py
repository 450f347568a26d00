"""Cubic splines in a stream of planes, against SciPy on the whole volume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.volumes.nifti import open_nifti
from apps.imaging.volumes.spline import Limits, SplineReader, nearest_axis, spline_bytes, spline_matrix
from tests.apps.imaging.helpers import write_nifti
from tests.apps.imaging.volumes.subjects import RESHAPED, Made


@pytest.mark.parametrize(("size", "new"), [(7, 8), (20, 16), (5, 50), (2, 3), (1, 3), (3, 1), (90, 91)])
def test_a_matrix_is_scipys(size: int, new: int) -> None:
    from scipy.ndimage import zoom

    columns = [zoom(unit, new / size, order=3, mode="nearest", grid_mode=True) for unit in np.eye(size)]
    np.testing.assert_allclose(spline_matrix(size, new), np.stack(columns, axis=1), atol=1e-7)


@pytest.mark.parametrize("nearest", [None, 0, 1, 2])
def test_splines_in_a_stream_are_scipys(tmp_path: Path, nearest: int | None) -> None:
    """Sharp edges overshoot; each plane is cut at its own range where planes are interpolated one by one."""
    from scipy.ndimage import zoom

    values = np.random.default_rng(0).integers(0, 2, (17, 20, 41)).astype(np.float32)
    values *= 1 + np.arange(17)[:, None, None] + np.arange(20)[:, None] + np.arange(41)
    shape = (21, 15, 52)
    volume = open_nifti(write_nifti(tmp_path / "image.nii.gz", values))
    found = np.empty(shape[::-1], np.float32)
    with volume.open() as reader:
        limits = None if nearest == 2 else Limits.of([values.transpose(2, 1, 0)], nearest)
        SplineReader(volume, reader, shape, (), nearest=nearest, limits=limits).read(found)
    options = {"order": 3, "mode": "nearest", "grid_mode": True}
    if nearest is None:
        whole = zoom(values.astype(float), np.divide(shape, values.shape), **options)
        expected = np.clip(whole, values.min(), values.max())
    else:
        ahead, new = np.moveaxis(values, nearest, 0), shape[nearest]
        planes = [ahead[int((index + 0.5) * len(ahead) / new)] for index in range(new)]
        size = [side for axis, side in enumerate(shape) if axis != nearest]
        enlarged = [zoom(plane.astype(float), np.divide(size, plane.shape), **options) for plane in planes]
        cut = [np.clip(made, old.min(), old.max()) for made, old in zip(enlarged, planes, strict=True)]
        expected = np.stack(cut, axis=nearest)
    np.testing.assert_allclose(found.transpose(2, 1, 0), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize(("shape", "new"), RESHAPED)
def test_a_spline_reader_holds_what_it_is_priced_at(shape: Any, new: Any, dtype: str) -> None:
    volume = Made(shape, np.dtype(dtype))
    price = spline_bytes(volume, new)  # type: ignore[arg-type]
    for nearest in (None, 0, 2):
        count = 1 if nearest is None else volume.shape[nearest]
        limits = Limits(np.zeros(count, np.float32), np.ones(count, np.float32))

        def make(volume: Any, planes: Any, nearest: int | None = nearest, limits: Limits = limits) -> SplineReader:
            return SplineReader(volume, planes, new, (), nearest=nearest, limits=limits)

        used = volume.allocated(make, new)
        assert used <= price.peak <= 1.9 * used


def test_which_axis_is_not_interpolated() -> None:
    assert nearest_axis((1, 1, 1), (1, 1, 1)) is None
    assert nearest_axis((1, 1, 3.5), (1, 1, 1)) == 2
    assert nearest_axis((1, 1, 1), (4, 1, 1)) == 0
    assert nearest_axis((0.2, 1.25, 1.25), (1, 1, 1)) is None
    assert nearest_axis((1, 1, 3.5), (1, 1, 1), False) is None and nearest_axis((1, 1, 1.5), (1, 1, 1), True) == 2
    # There and back: the grid that it comes from is asked first.
    assert (nearest_axis((1, 1, 3.5), (4, 1, 1)), nearest_axis((4, 1, 1), (1, 1, 3.5))) == (2, 0)
