"""Grids, axes and interpolation, against torch, SciPy and nnU-Net's rounding."""

from itertools import product

import numpy as np
import pytest

from apps.imaging.volumes.geometry import AxisMapping, LinearInterpolation, network_grid, resample


def test_linear_interpolation_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).standard_normal((9, 14, 6)).astype(np.float32)
    for shape in [(12, 7, 6), (3, 28, 11)]:
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(values)[None, None], shape, mode="trilinear", align_corners=False
        )[0, 0]
        np.testing.assert_allclose(resample(values, shape), expected.numpy(), atol=2e-6)


def test_taps_keep_a_constant_and_the_mean_position() -> None:
    taps = LinearInterpolation.between(10, 25)
    np.testing.assert_array_equal(taps(np.full(10, 3.0, np.float32), 0), np.full(25, 3.0, np.float32))
    ramp = taps(np.arange(10, dtype=np.float32), 0)
    assert ramp.mean() == pytest.approx(4.5, abs=1e-5)


def test_grid_and_frame() -> None:
    affine = np.diag([-0.9, 0.9, 1.005, 1.0])
    assert network_grid((100, 100, 50), affine, (1.0, 1.0, 1.0)) == (90, 90, 50)
    frame = AxisMapping.between(np.diag([-1.0, 1, 1, 1])[[1, 2, 0, 3]], "RAS")
    tile = np.arange(24).reshape(2, 3, 4)
    assert frame.view(tile).shape == frame.to_file((2, 3, 4))
    frame.view(tile)[0, 0, 0] = 99
    assert (tile == 99).sum() == 1


@pytest.mark.parametrize(
    ("size", "new"), [(17, 15), (15, 17), (18, 20), (24, 36), (36, 24), (3, 100), (50, 50), (7, 1)]
)
def test_the_nearest_planes_are_scipys(size: int, new: int) -> None:
    from scipy.ndimage import map_coordinates

    places = size / new * (np.arange(new) + 0.5) - 0.5
    expected = map_coordinates(np.arange(float(size)), [places], order=0, mode="nearest")
    np.testing.assert_array_equal(LinearInterpolation.nearest(size, new).lower, expected)


def test_the_grid_is_nnunets_where_a_size_lies_between_two() -> None:
    """Halves are rounded from the same product, taken in the same order, as by ``compute_new_shape``."""
    for old, new, size in product((0.7, 0.8, 0.9, 1.1, 3.6), (0.8, 1.0, 1.2), range(1, 80)):
        found = network_grid((size, size, size), np.diag([old, old, old, 1.0]), (new, new, new), 0.0)
        assert found[0] == max(1, round(old / new * size))
