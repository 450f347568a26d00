"""Segmentation problems for ``common.bench.exactness``: Dice per sample and per batch, with and without a mask."""

from functools import partial
from types import MappingProxyType

import torch

from apps.imaging.training.losses.labels import IGNORED, BatchDiceCrossEntropy, DiceCrossEntropy
from common.bench.exactness import Problem


def segmenter() -> torch.nn.Module:
    """Build two convolutions with instance normalisation between them."""
    layers = (
        torch.nn.Conv3d(1, 4, 3, padding=1),
        torch.nn.InstanceNorm3d(4, affine=True),
        torch.nn.Tanh(),
        torch.nn.Conv3d(4, 3, 1),
    )
    return torch.nn.Sequential(*layers)


def volumes(samples: int, dtype: torch.dtype, *, masked: bool = False) -> list[torch.Tensor]:
    """Draw images (samples, 1, 4, 5, 6) and classes (samples, 4, 5, 6).

    Parameters
    ----------
    masked
        Mark a random share of each sample's voxels as ignored.
    """
    images = torch.randn(samples, 1, 4, 5, 6, dtype=dtype)
    classes = torch.randint(0, 3, (samples, 4, 5, 6)).to(torch.uint8)
    if masked:
        classes[torch.rand(classes.shape) < torch.rand(samples, 1, 1, 1)] = IGNORED
    return [images, classes]


DICE = MappingProxyType(
    {
        "sample Dice": Problem(segmenter, volumes, DiceCrossEntropy()),
        "masked sample Dice": Problem(segmenter, partial(volumes, masked=True), DiceCrossEntropy()),
        "batch Dice": Problem(segmenter, volumes, BatchDiceCrossEntropy()),
        "masked batch Dice": Problem(segmenter, partial(volumes, masked=True), BatchDiceCrossEntropy()),
    }
)
