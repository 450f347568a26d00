"""Memory of reading images, for every command that runs a network over them: pure prices."""

from apps.imaging.inference.components.streaming import components_bytes
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.inference.reading import pass_planes
from apps.imaging.volumes.filled import Filled
from apps.imaging.volumes.nonzero_crop import cropped_bytes
from apps.imaging.volumes.one_hot import one_hot_bytes
from apps.imaging.volumes.spline import spline_bytes
from apps.imaging.volumes.streaming import resampling_bytes, window_bytes, window_depth
from apps.imaging.volumes.volume import Volume, block_planes
from common.memory.footprint import Price
from common.memory.process.budget import MIB
from common.tiling.blend import FLOAT

LIBRARIES = ("nibabel", "pydicom", "pillow", "safetensors")
"""Distributions whose versions decide a baseline, together with the engine's."""
OBJECTS_BYTES = 3 * MIB
"""Python objects, headers and buffers that are too small to price one by one."""


def reader_bytes(grid: NetworkGrid) -> int:
    """Bytes of the open readers of all channels."""
    return sum(map(_reader_bytes, grid.channels))


def _reader_bytes(grid: NetworkGrid) -> int:
    own = cropped_bytes(grid.volume) if grid.nnunet else grid.volume.reader_bytes
    return own + (_read(grid).reader_bytes - grid.volume.reader_bytes)


def _read(grid: NetworkGrid) -> Volume:
    """The volume as it is read: nnU-Net's mask makes single precision of it."""
    return Filled(grid.volume) if grid.masked else grid.volume


def input_bytes(grid: NetworkGrid) -> Price:
    """Bytes between the files and the tiles; one channel is read after the other."""
    prices = [_channel_bytes(channel) for channel in grid.channels]
    x, y, _ = grid.tiles.shape
    masks = grid.masks * x * y * window_depth(grid.tiles) * FLOAT
    transient = max(price.transient for price in prices)
    return Price(masks + sum(price.resident for price in prices), max(transient, 2 * x * y if grid.masks else 0))


def _channel_bytes(grid: NetworkGrid) -> Price:
    if grid.by_spline:
        x, y, _ = grid.tiles.shape
        reader = spline_bytes(_read(grid), grid.tiles.shape)
        return Price(x * y * window_depth(grid.tiles) * FLOAT + reader.resident, reader.transient)
    window = window_bytes(_read(grid), grid.tiles, resampled=grid.resampled)
    return Price(window.resident + _boxed_bytes(grid), window.transient)


def pass_bytes(grid: NetworkGrid) -> int:
    """Bytes of one block of a pass over the images: as stored, in float32, and two more while moments are taken.

    The passes over the channels follow each other; that for nnU-Net's mask reads a plane of each.
    """
    passes = max(map(_channel_pass, grid.channels))
    if grid.masks:
        passes = max(passes, one_hot_bytes(grid.volume, grid.tiles.shape))
    return max(passes, components_bytes(grid.volume.shape)) if grid.masked or grid.masks else passes


def _channel_pass(grid: NetworkGrid) -> int:
    x, y, _ = grid.volume.shape
    volume = _read(grid)
    stored = block_planes(volume) * x * y * (volume.dtype.itemsize + 3 * FLOAT)
    if not grid.resampled or grid.nnunet:
        return stored
    x, y, z = grid.tiles.shape
    on_grid = min(z, pass_planes(grid)) * x * y * 4 * FLOAT
    return max(stored, on_grid + resampling_bytes(grid.volume, grid.whole).peak + _boxed_bytes(grid))


def _boxed_bytes(grid: NetworkGrid) -> int:
    """Bytes of a ``BoxedReader``: a plane of the whole grid, and one of the box while operations are applied."""
    return 0 if grid.low is None else 2 * grid.whole[0] * grid.whole[1] * FLOAT
