"""Windows and resampling as streams: the numbers of the whole volume in memory, in the priced bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.volumes.geometry import resample
from apps.imaging.volumes.nifti import open_nifti
from apps.imaging.volumes.streaming import PlaneRingBuffer, ResamplingReader, resampling_bytes, window_bytes
from apps.imaging.volumes.volume import blocks
from common.memory.footprint import Price
from common.tiling.grid import TileGrid
from tests.apps.imaging.helpers import write_nifti
from tests.apps.imaging.volumes.subjects import RESHAPED, Made


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


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize(("shape", "new"), RESHAPED)
def test_a_resampling_reader_holds_what_it_is_priced_at(shape: Any, new: Any, dtype: str) -> None:
    volume = Made(shape, np.dtype(dtype))
    price = resampling_bytes(volume, new)  # type: ignore[arg-type]
    plain = volume.allocated(lambda volume, planes: ResamplingReader(volume, planes, new), new)
    masked = volume.allocated(lambda volume, planes: ResamplingReader(volume, planes, new, keep_zeros=True), new)
    assert plain <= masked <= price.peak <= 1.6 * plain


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
