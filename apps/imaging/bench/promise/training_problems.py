"""Segmentation problems for ``common.bench.exactness``: Dice of each sample and of the batch, with ignored voxels."""

from functools import partial
from types import MappingProxyType

import torch

from apps.imaging.training.losses import IGNORED, BatchDiceCrossEntropy, DiceCrossEntropy
from common.bench.exactness import Problem


def segmenter() -> torch.nn.Module:
    """Two convolutions, and a norm of each sample."""
    layers = (
        torch.nn.Conv3d(1, 4, 3, padding=1),
        torch.nn.InstanceNorm3d(4, affine=True),
        torch.nn.Tanh(),
        torch.nn.Conv3d(4, 3, 1),
    )
    return torch.nn.Sequential(*layers)


def volumes(samples: int, dtype: torch.dtype, *, masked: bool = False) -> list[torch.Tensor]:
    """Images and classes, of which another share of each sample is ignored."""
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
