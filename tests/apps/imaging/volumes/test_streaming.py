"""Windows and resampling as streams: the numbers of the whole volume in memory, in the priced bytes."""

from pathlib import Path

import numpy as np
import pytest

from apps.imaging.volumes.geometry import AxisMapping, LinearInterpolation, network_grid, resample
from apps.imaging.volumes.intensity import apply, check_operations, resolve
from apps.imaging.volumes.nifti import open_nifti
from apps.imaging.volumes.streaming import PlaneRingBuffer, ResamplingReader, window_bytes
from apps.imaging.volumes.volume import blocks
from common.memory.footprint import Price
from common.tiling.grid import TileGrid
from tests.apps.imaging.helpers import write_nifti
from tests.messages import refused


def stored(tmp_path: Path, shape: tuple[int, int, int] = (23, 17, 29), dtype: str = "int16", **header: float) -> Path:
    values = np.random.default_rng(0).integers(-100, 1000, shape).astype(dtype)
    return write_nifti(tmp_path / "image.nii.gz", values, **header)


@pytest.mark.parametrize("dtype", ["int16", "uint8", ">i2", "float32", "float64"])
def test_window_tiles_are_the_whole_volumes(tmp_path: Path, dtype: str) -> None:
    volume = open_nifti(stored(tmp_path, dtype=dtype))
    whole = np.pad(np.concatenate(list(blocks(volume))).transpose(2, 1, 0), ((0, 0), (1, 2), (0, 0)))
    grid = TileGrid(volume.shape, (8, 20, 12), 0.4)
    out = np.empty(grid.tile, np.float32)
    with volume.open() as reader:
        window = PlaneRingBuffer(volume, reader, grid, ())
        for position in grid:
            window.advance(position[2])
            window.fill(position, out)
            x, y, z = (slice(start, start + size) for start, size in zip(position, grid.tile, strict=True))
            np.testing.assert_array_equal(out, whole[x, y, z])
    assert window_bytes(volume, grid) == Price(window._planes.nbytes, 0)


def test_resampled_planes_are_the_resampled_volume(tmp_path: Path) -> None:
    volume = open_nifti(stored(tmp_path))
    whole = np.concatenate(list(blocks(volume))).transpose(2, 1, 0)
    for shape in [(20, 31, 40), (23, 9, 11), (46, 17, 29), (5, 5, 1)]:
        out = np.empty(shape[::-1], np.float32)
        with volume.open() as reader:
            stream = ResamplingReader(volume, reader, shape)
            for start in range(0, shape[2], 3):
                stream.read(out[start : start + 3])
        np.testing.assert_allclose(out.transpose(2, 1, 0), resample(whole, shape), rtol=1e-5, atol=1e-3)


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


OPERATIONS = [
    ([{"op": "zscore"}], lambda v: (v - v.mean()) / v.std()),
    (
        [{"op": "zscore", "nonzero": True}],
        lambda v: np.where(v == 0, 0, (v - v[v != 0].mean()) / v[v != 0].std()),
    ),
    (
        [{"op": "clip", "low": 0, "high": 500}, {"op": "scale", "low": 0, "high": 500}],
        lambda v: np.clip(v, 0, 500) / 500,
    ),
    (
        [{"op": "clip", "low": 0, "high": 500}, {"op": "zscore"}],
        lambda v: (np.clip(v, 0, 500) - np.clip(v, 0, 500).mean()) / np.clip(v, 0, 500).std(),
    ),
]


@pytest.mark.parametrize(("operations", "expected"), OPERATIONS)
def test_intensity_streams_give_the_whole_volumes_numbers(operations, expected) -> None:  # type: ignore[no-untyped-def]
    values = np.random.default_rng(5).integers(-100, 1000, (30, 20, 10)).astype(np.float64)
    values[:5] = 0
    resolved = resolve(operations, lambda: (values[start : start + 7] for start in range(0, 30, 7)))
    np.testing.assert_allclose(apply(resolved, values.astype(np.float32)), expected(values), atol=2e-5)


def test_percentiles_are_within_a_bin() -> None:
    values = np.random.default_rng(6).gamma(2, 100, (40, 30, 20)).astype(np.float32)
    (clip,) = resolve([{"op": "percentiles", "low": 0.5, "high": 99.5}], lambda: np.array_split(values, 7))
    expected = np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose([clip["low"], clip["high"]], expected, atol=2 * np.ptp(values) / 65536)


def test_intensity_survives_constants_and_broken_voxels() -> None:
    flat = resolve([{"op": "zscore"}], lambda: [np.full((4, 4), 7.0)])
    assert (apply(flat, np.full((4, 4), 7.0, np.float32)) == 0).all()
    assert np.isfinite(apply((), np.array([np.nan, np.inf, -np.inf, 1], np.float32))).all()


@pytest.mark.parametrize(
    "bad", [{"op": "exec"}, {"op": "clip", "low": 1}, {"op": "zscore", "x": 1}, {"op": "scale", "low": 2, "high": 1}]
)
def test_unknown_operations_are_refused(bad: dict[str, object]) -> None:
    with refused(ValueError, bad["op"]):
        check_operations([bad])
