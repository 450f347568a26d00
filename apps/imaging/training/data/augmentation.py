"""Augmentation of training patches: rotation and scaling, then the intensities of each channel.

All random choices follow from the generator that is passed. ``light`` is what the models that are shipped were trained
with; ``full`` has the transforms of nnU-Net's trainer with their probabilities and ranges (Isensee et al., Nature
Methods 18, 203 (2021), supplement; nnU-Net 2.8 with batchgeneratorsv2).
"""

from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from apps.imaging.training.data.synthesis import gaussian
from apps.imaging.volumes.volume import Shape

if TYPE_CHECKING:
    from torch import Tensor

NONE, LIGHT, FULL = KINDS = ("none", "light", "full")
"""Values of ``--set augment``; mirroring is a setting of its own."""
WARP_SHARE = 0.3
"""Share of patches that are rotated and scaled, in ``light``."""
TURN_SHARE = ZOOM_SHARE = 0.2
"""Shares of patches that are rotated, and that are scaled, in ``full``."""
ZOOM = (0.7, 1.4)
"""Least and largest scaling in ``full``, alike along all axes."""
TURN = np.deg2rad(30)
"""Largest rotation about each axis in ``full``."""
MARGIN = {NONE: 1.0, LIGHT: 1.25, FULL: 1.5}
"""A patch that is rotated and scaled is cut from a region that is larger by at most this factor; outside are zeros."""

Matrix = npt.NDArray[np.float64]


def augmentation_bytes(kind: str, patch: Shape, channels: int) -> int:
    """Bytes of the arrays that make one sample, without the sample itself.

    Parameters
    ----------
    kind
        Of ``KINDS``.
    patch
        Voxels of the sample along each axis.
    """
    voxels, region = prod(patch), prod(_largest_region(kind, patch))
    cut = region * (4 * channels + 1)
    if kind == NONE:
        return 2 * cut  # a region that reaches beyond the volume lies in zeros
    # affine_grid makes four numbers a voxel for its three; then the grid stands beside what is resampled by it.
    warped = max(28 * voxels, (12 + 4 * channels) * voxels, 16 * voxels + 4 * region)
    return max(2 * cut, cut + warped)


def _largest_region(kind: str, patch: Shape) -> Shape:
    x, y, z = (round(edge * MARGIN[kind]) for edge in patch)
    return x, y, z


def region(kind: str, patch: Shape, matrix: Matrix | None) -> Shape:
    """Voxels of the region that a patch is resampled from by ``warp``; without a matrix the patch itself."""
    if matrix is None:
        return patch
    largest = _largest_region(kind, patch)
    if kind == LIGHT:
        return largest
    reach = np.abs(matrix) @ np.array(patch, float)
    x, y, z = (min(most, ceil(size) + 1) for most, size in zip(largest, reach, strict=True))
    return x, y, z


def placed(kind: str, random: np.random.Generator) -> Matrix | None:
    """Draw the matrix (3, 3) by which a patch is rotated and scaled; ``None``: it is not."""
    if kind == NONE:
        return None
    if kind == LIGHT:
        return turned(random) if random.random() < WARP_SHARE else None
    turns, zooms = random.random() < TURN_SHARE, random.random() < ZOOM_SHARE
    if not (turns or zooms):
        return None
    factor = _about_one(random, *ZOOM) if zooms else 1.0
    return turned(random, angle=float(TURN) if turns else 0.0, scale=(factor, factor))


def turned(random: np.random.Generator, *, angle: float = 0.25, scale: tuple[float, float] = (0.85, 1.15)) -> Matrix:
    """Draw a matrix (3, 3): a rotation of up to ``angle`` (rad) about each axis, and a scaling along each."""
    matrix = np.diag(random.uniform(*scale, 3))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        drawn = random.uniform(-angle, angle)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(drawn)
        turn[first, second], turn[second, first] = -np.sin(drawn), np.sin(drawn)
        matrix = turn @ matrix
    return matrix


def warp(values: "Tensor", members: "Tensor", matrix: Matrix, image: "Tensor", label: "Tensor") -> None:
    """Resample a region (image: channels, x, y, z) by a linear map about its centre into a patch."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    # grid_sample counts axes from the last and in half edges of the region.
    edges = np.array(members.shape[::-1], float)
    patch = np.array(label.shape[::-1], float)
    theta = torch.from_numpy(matrix[::-1, ::-1] * patch / edges[:, None]).float()
    grid = affine_grid(torch.nn.functional.pad(theta, (0, 1))[None], [1, 1, *label.shape], align_corners=False)
    image.copy_(grid_sample(values[None], grid, "bilinear", "zeros", align_corners=False)[0])
    label.copy_(grid_sample(members[None, None].float(), grid, "nearest", "zeros", align_corners=False)[0, 0])


def vary(kind: str, random: np.random.Generator, image: "Tensor") -> None:
    """Augment the intensities of all channels (channels, x, y, z) in place."""
    if kind == LIGHT:
        for channel in image:
            _vary_lightly(random, channel)
    elif kind == FULL:
        for share, of_channels, transform in VARIATIONS:
            if random.random() < share:
                for channel in image:
                    if random.random() < of_channels:
                        transform(random, channel)


def _vary_lightly(random: np.random.Generator, image: "Tensor") -> None:
    """Factor, offset, gamma and noise of one channel, each with its own probability."""
    if random.random() < 0.5:
        image *= random.uniform(0.8, 1.2)
    if random.random() < 0.5:
        image += random.uniform(-0.2, 0.2)
    if random.random() < 0.3:
        gamma(image, random.uniform(0.7, 1.5))
    if random.random() < 0.2:
        add_noise(random, image)


def _about_one(random: np.random.Generator, low: float, high: float) -> float:
    """A factor, as often below 1 as above."""
    return float(random.uniform(low, 1) if random.random() < 0.5 else random.uniform(1, high))


def add_noise(random: np.random.Generator, image: "Tensor") -> None:
    """Normal noise of a standard deviation of up to 0.1."""
    import torch

    noise = random.standard_normal(tuple(image.shape), np.float32)
    image += torch.from_numpy(noise) * random.uniform(0, 0.1)


def gamma(image: "Tensor", power: float) -> None:
    """Raise the place of each value between the extremes to a power; mean and standard deviation stay."""
    mean, deviation, low, high = image.mean(), image.std(), image.min(), image.max()
    image.sub_(low).div_((high - low).clamp(min=1e-6)).pow_(power)
    image.sub_(image.mean()).mul_(deviation / image.std().clamp(min=1e-6)).add_(mean)


def blur(image: "Tensor", sigmas: npt.NDArray[np.float64]) -> None:
    """Blur one channel by a Gaussian, whose standard deviation (voxels) is given for each axis."""
    import torch

    values = image.numpy()
    for axis, sigma in enumerate(sigmas):
        values = gaussian(values, axis, float(sigma))
    image.copy_(torch.from_numpy(values))


def contrast(image: "Tensor", factor: float) -> None:
    """Multiply the distance from the mean; values stay between the extremes."""
    mean, low, high = image.mean(), image.min(), image.max()
    image.sub_(mean).mul_(factor).add_(mean).clamp_(low, high)


def lower_resolution(image: "Tensor", zoom: float) -> None:
    """Keep a share of the voxels along each axis (the nearest ones), and interpolate between them."""
    from torch.nn.functional import interpolate

    small = [max(1, round(size * zoom)) for size in image.shape]
    kept = interpolate(image[None, None], small, mode="nearest-exact")
    image.copy_(interpolate(kept, image.shape, mode="trilinear", align_corners=False)[0, 0])


def _invert(image: "Tensor", power: float) -> None:
    """``gamma`` from the bright end."""
    gamma(image.neg_(), power)
    image.neg_()


VARIATIONS: "Sequence[tuple[float, float, Callable[[np.random.Generator, Tensor], object]]]" = (
    (0.1, 1.0, add_noise),
    (0.2, 0.5, lambda random, channel: blur(channel, random.uniform(0.5, 1.0, 3))),
    (0.15, 1.0, lambda random, channel: channel.mul_(_about_one(random, 0.75, 1.25))),
    (0.15, 1.0, lambda random, channel: contrast(channel, _about_one(random, 0.75, 1.25))),
    (0.25, 0.5, lambda random, channel: lower_resolution(channel, random.uniform(0.5, 1.0))),
    (0.1, 1.0, lambda random, channel: _invert(channel, _about_one(random, 0.7, 1.5))),
    (0.3, 1.0, lambda random, channel: gamma(channel, _about_one(random, 0.7, 1.5))),
)
"""The variations of ``full`` in their order: share of the patches, share of their channels, and what is done to one
channel in place. The noise's standard deviation is drawn for each channel, in nnU-Net once for all."""
