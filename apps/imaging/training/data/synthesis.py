"""Images made from label maps, for networks that segment any contrast: SynthSeg's idea (Billot et al., 2023).

A patch of a map is rotated, scaled and bent; each tissue gets an intensity of its own, voxels vary around it, a bias
field, blur, thick slices, noise and a gamma curve follow, and some images lose all that is outside the labelled
classes, as a skull is stripped. All random choices follow from the generator that is passed.
"""

from collections.abc import Callable
from math import prod

import numpy as np
import numpy.typing as npt

from apps.imaging.training.data.label_table import LabelTable
from apps.imaging.training.data.prepared import Classes, Image
from apps.imaging.volumes.geometry import resample
from apps.imaging.volumes.volume import Shape

Tissues = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float32]
Spacing = tuple[float, float, float]
Read = Callable[[Shape, Shape], Tissues]
"""Reads a box of a map: from a voxel to before another."""

STRIPPED = 0.5
"""Share of the images without what is outside the labelled classes."""
DARK_AIR = 0.7
"""Share of the images whose label 0 is nearly black; it is of any brightness in the others."""
THICK = 0.35
"""Share of the images with thick slices along one axis."""
THICKEST = 6.0
"""Thickest slices in millimetres."""
BEND = 3.0
"""Largest standard deviation of the displacement, in millimetres."""
KNOT = 24.0
"""Distance of the displacement's knots, in millimetres."""
VOXEL_BYTES = 24
"""Bytes of a voxel while an image is synthesised: places as int64 and int16, later float32 arrays (measured 21)."""


def synthesis_bytes(voxels: int, region: int) -> int:
    """Bytes of ``cut`` and ``paint`` with their results, without the map itself.

    Parameters
    ----------
    voxels
        Of the image.
    region
        Voxels of the part of the map that is read.
    """
    return VOXEL_BYTES * voxels + region


def paint(random: np.random.Generator, tissues: Tissues, table: LabelTable, spacing: Spacing) -> tuple[Image, Classes]:
    """Synthesise an image of a label map.

    Parameters
    ----------
    tissues
        Numbers of the tissues (x, y, z), as ``LabelTable.tissues`` has them.
    spacing
        Of the voxels, in millimetres.

    Returns
    -------
    tuple
        Image (1, x, y, z) of mean 0 and standard deviation 1, as inference normalises an image of this field of view,
        and classes (x, y, z).
    """
    levels = _levels(random, table)
    removed = _removed(random, table)
    image = levels[:, 0][tissues]
    noise = random.standard_normal(tissues.shape, np.float32)
    noise *= levels[:, 1][tissues]
    image += noise
    np.clip(image, 0, None, out=image)
    bias = _smooth(random, tissues.shape, (4, 4, 4))
    bias *= random.uniform(0, 0.4)
    image *= np.exp(bias, out=bias)
    del bias
    image = _blurred(random, image, spacing)
    noise = random.standard_normal(tissues.shape, np.float32, out=noise)
    noise *= random.uniform(0, 12)
    image += noise
    del noise
    image -= image.min()
    image /= max(float(image.max()), 1e-6)
    image **= np.float32(np.exp(random.normal(0, 0.3)))
    classes = table.class_of[tissues]
    if removed is not None:
        outside = removed[tissues]
        image[outside] = 0
        classes[outside] = 0
    image -= image.mean(dtype=np.float64).astype(np.float32)
    image /= max(float(image.std(dtype=np.float64)), 1e-6)
    return image[None], classes


def _levels(random: np.random.Generator, table: LabelTable) -> npt.NDArray[np.float32]:
    """Draw mean and standard deviation of each tissue (T, 2): anything, or near the typical ones of a contrast."""
    count = len(table.class_of)
    levels = np.stack([random.uniform(0, 255, count), random.uniform(1, 25, count)], 1).astype(np.float32)
    air = table.tissue_of.get(0)
    if air is not None and random.random() < DARK_AIR:
        levels[air] = random.uniform(0, 12), random.uniform(0, 6)
    choice = random.random()
    shifts, widths = random.normal(0, 12, count), random.uniform(0.3, 1.0, count)
    for name, share in table.contrasts.items():
        if 0 <= choice < share:
            typical = table.levels[name] * np.stack([np.ones(count), widths], 1)
            typical[:, 0] += shifts
            levels = np.where(np.isnan(typical), levels, np.clip(typical, 0, None)).astype(np.float32)
        choice -= share
    return levels


def _removed(random: np.random.Generator, table: LabelTable) -> npt.NDArray[np.bool_] | None:
    """Draw which tissues (T,) an image lacks; ``None``: none."""
    stripped, further = random.random() < STRIPPED, random.random() < 0.5
    if not stripped:
        return None
    removed: npt.NDArray[np.bool_] = (table.class_of == 0) | (table.outer & further)
    return removed


def _blurred(random: np.random.Generator, image: Field, spacing: Spacing) -> Field:
    """Blur an image in place: a little along each axis, or as thick slices along one."""
    axis, thick = int(random.integers(3)), random.random() < THICK
    sigmas = random.uniform(0.2, 0.9, 3)
    thickness = random.uniform(1, max(1.01, THICKEST / spacing[axis]))
    if thick:
        sigmas[axis] = max(sigmas[axis], 0.4 * thickness)
    for along, sigma in enumerate(sigmas):
        image = gaussian(image, along, float(sigma))
    if thick:
        x, y, z = (max(1, round(size / thickness)) if n == axis else size for n, size in enumerate(image.shape))
        image = resample(resample(image, (x, y, z)), image.shape)
    return image


def gaussian(image: Field, axis: int, sigma: float) -> Field:
    """Blur along one axis; beyond its ends the image is repeated."""
    radius = max(1, min(round(3 * sigma), image.shape[axis] - 1))
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    source, target = np.moveaxis(image, axis, 0), np.empty_like(image)
    result, size = np.moveaxis(target, axis, 0), image.shape[axis]
    np.multiply(source, np.float32(weights[0]), out=result)
    for shift in range(1, radius + 1):
        weight = np.float32(weights[shift])
        if shift < size:
            result[shift:] += weight * source[:-shift]
            result[:-shift] += weight * source[shift:]
        result[:shift] += weight * source[:1]
        result[size - shift :] += weight * source[-1:]
    return target


def _smooth(random: np.random.Generator, shape: tuple[int, ...], knots: Shape) -> Field:
    """A smooth random field: normal values at knots, spread by Gaussians."""
    field = random.standard_normal(knots, np.float32)
    for size, count in zip(shape, knots, strict=True):
        places = np.linspace(-0.5, count - 0.5, size, dtype=np.float32)[:, None]
        spread = np.exp(-0.5 * ((places - np.arange(count, dtype=np.float32)) / 0.6) ** 2)
        spread /= spread.sum(1, keepdims=True)
        field = np.ascontiguousarray(np.einsum("abc,na->bcn", field, spread))
    return field


def cut(
    random: np.random.Generator,
    read: Read,
    shape: Shape,
    *,
    matrix: npt.NDArray[np.float64],
    centre: npt.NDArray[np.float64],
    patch: Shape,
    scale: npt.NDArray[np.float64],
    fill: int,
    bend: float,
) -> Tissues:
    """Cut a patch of a map that is turned by ``matrix`` and bent at random.

    Parameters
    ----------
    read, shape
        The map, and its voxels.
    matrix
        (3, 3), from places in the patch to places in the map, both in millimetres.
    centre
        The patch's centre, in voxels of the map.
    scale
        Of the network's grid and of the map (2, 3), in millimetres.
    fill
        Tissue of places outside the map.
    bend
        Standard deviation of the displacement along each axis, in millimetres.
    """
    own, native = scale
    offsets = [(np.arange(size) - (size - 1) / 2) * edge for size, edge in zip(patch, own, strict=True)]
    knots = tuple(max(2, round(size * edge / KNOT)) for size, edge in zip(patch, own, strict=True))
    places: list[npt.NDArray[np.int16]] = []
    lows, highs = [], []
    for axis in range(3):
        along = [(matrix[axis, k] * offsets[k] / native[axis]).astype(np.float32) for k in range(3)]
        exact = _smooth(random, patch, knots)
        exact *= bend / native[axis]
        exact += along[0][:, None, None] + np.float32(centre[axis])
        exact += along[1][:, None]
        exact += along[2]
        nearest = np.rint(exact, out=exact).astype(np.int16)
        places.append(nearest)
        lows.append(min(max(0, int(nearest.min())), shape[axis] - 1))
        highs.append(max(min(shape[axis], int(nearest.max()) + 1), lows[-1] + 1))
    del exact, nearest
    region = np.ascontiguousarray(read(tuple(lows), tuple(highs)))  # type: ignore[arg-type]
    index = np.zeros(patch, np.intp)
    outside = np.zeros(patch, np.bool_)
    for place, low, size in zip(places, lows, region.shape, strict=True):
        place -= np.int16(low)
        outside |= (place < 0) | (place >= size)
        index *= size
        index += np.clip(place, 0, size - 1, out=place)
    tissues = region.reshape(-1)[index]
    tissues[outside] = fill
    return tissues


def region_voxels(patch: Shape, shape: Shape, own: Spacing, native: Spacing) -> int:
    """Voxels of the map that a patch may need."""
    reach = max(size * edge for size, edge in zip(patch, own, strict=True)) * 1.5 + 8 * BEND
    return prod(min(size, int(reach / edge) + 1) for size, edge in zip(shape, native, strict=True))
