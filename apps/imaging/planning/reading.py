"""What the reading of volumes takes, for every command that runs a network over them: pure prices."""

from apps.imaging.inference.network_grid import NetworkGrid, pass_planes
from apps.imaging.volumes.nonzero_crop import cropped_bytes
from apps.imaging.volumes.spline import spline_bytes
from apps.imaging.volumes.streaming import resampling_bytes, window_bytes, window_depth
from apps.imaging.volumes.volume import block_planes
from common.memory.footprint import Price
from common.memory.process.budget import MIB
from common.tiling.blend import FLOAT

LIBRARIES = ("nibabel", "pydicom", "pillow", "safetensors")
"""Distributions whose versions decide a baseline, beside the engine's."""
OBJECTS_BYTES = 3 * MIB
"""Python objects, headers and buffers that are too small to price one by one."""


def reader_bytes(case: NetworkGrid) -> int:
    """What the open readers of all channels hold."""
    return sum(cropped_bytes(each.volume) if case.nnunet else each.volume.reader_bytes for each in case.channels)


def input_bytes(case: NetworkGrid) -> Price:
    """What reading holds between the volumes and the tiles; one channel is read after the other."""
    prices = [_channel_bytes(each) for each in case.channels]
    return Price(sum(price.resident for price in prices), max(price.transient for price in prices))


def _channel_bytes(case: NetworkGrid) -> Price:
    if case.nnunet and case.resampled:
        x, y, _ = case.grid.shape
        reader = spline_bytes(case.volume, case.grid.shape)
        return Price(x * y * window_depth(case.grid) * FLOAT + reader.resident, reader.transient)
    return window_bytes(case.volume, case.grid, resampled=case.resampled)


def pass_bytes(case: NetworkGrid) -> int:
    """One block of a pass over the volume: as stored, in float32, and two more while moments are taken.

    One channel is passed over after the other.
    """
    return max(map(_channel_pass, case.channels))


def _channel_pass(case: NetworkGrid) -> int:
    x, y, _ = case.volume.shape
    voxels = block_planes(case.volume) * x * y
    stored = voxels * (case.volume.dtype.itemsize + 3 * FLOAT)
    if case.steps is None:
        return stored
    x, y, z = case.grid.shape
    on_grid = min(z, pass_planes(case)) * x * y * 4 * FLOAT
    return max(stored, on_grid + resampling_bytes(case.volume, case.grid.shape).peak)
