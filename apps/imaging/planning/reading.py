"""Memory of reading images, for every command that runs a network over them: pure prices."""

from apps.imaging.inference.network_grid import NetworkGrid, pass_planes
from apps.imaging.volumes.nonzero_crop import cropped_bytes
from apps.imaging.volumes.spline import spline_bytes
from apps.imaging.volumes.streaming import resampling_bytes, window_bytes, window_depth
from apps.imaging.volumes.volume import block_planes
from common.memory.footprint import Price
from common.memory.process.budget import MIB
from common.tiling.blend import FLOAT

LIBRARIES = ("nibabel", "pydicom", "pillow", "safetensors")
"""Distributions whose versions decide a baseline, together with the engine's."""
OBJECTS_BYTES = 3 * MIB
"""Python objects, headers and buffers that are too small to price one by one."""


def reader_bytes(grid: NetworkGrid) -> int:
    """Bytes of the open readers of all channels."""
    return sum(
        cropped_bytes(channel.volume) if grid.nnunet else channel.volume.reader_bytes for channel in grid.channels
    )


def input_bytes(grid: NetworkGrid) -> Price:
    """Bytes between the files and the tiles; one channel is read after the other."""
    prices = [_channel_bytes(channel) for channel in grid.channels]
    return Price(sum(price.resident for price in prices), max(price.transient for price in prices))


def _channel_bytes(grid: NetworkGrid) -> Price:
    if grid.by_spline:
        x, y, _ = grid.tiles.shape
        reader = spline_bytes(grid.volume, grid.tiles.shape)
        return Price(x * y * window_depth(grid.tiles) * FLOAT + reader.resident, reader.transient)
    return window_bytes(grid.volume, grid.tiles, resampled=grid.resampled)


def pass_bytes(grid: NetworkGrid) -> int:
    """Bytes of one block of a pass over the images: as stored, in float32, and two more while moments are taken.

    The passes over the channels follow each other.
    """
    return max(map(_channel_pass, grid.channels))


def _channel_pass(grid: NetworkGrid) -> int:
    x, y, _ = grid.volume.shape
    voxels = block_planes(grid.volume) * x * y
    stored = voxels * (grid.volume.dtype.itemsize + 3 * FLOAT)
    if grid.steps is None:
        return stored
    x, y, z = grid.tiles.shape
    on_grid = min(z, pass_planes(grid)) * x * y * 4 * FLOAT
    return max(stored, on_grid + resampling_bytes(grid.volume, grid.tiles.shape).peak)
