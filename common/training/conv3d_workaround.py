"""A faster 3D convolution of single samples in float32 on a CPU, which PyTorch often does not pass to oneDNN.

PyTorch passes a single sample to oneDNN if channels x depth x height > 20,480 (``ConvParams::use_mkldnn`` in
aten/src/ATen/native/Convolution.cpp; the rule was made for images and ignores a volume's width). The deeper layers of a
3D network are below that. PyTorch's own kernel copies each voxel 27 times and takes up to ten times as long. Two
samples always go to oneDNN, so a single one is cut along its width into two overlapping halves. The sums are the same,
and a step on one patch takes 0.45 to 0.7 of the time (``make bench-promise_allocator ONLY='single-*'``).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MOST_ROWS = 20_480
"""Channels x depth x height up to which PyTorch uses its own kernel."""
FEWEST_CHANNELS = 4
"""PyTorch's own kernel is faster for one or two channels, and for convolutions smaller than 3 x 3 x 3."""


def speed_up(network: nn.Module) -> nn.Module:
    """Replace the ``forward`` of 3 x 3 x 3 convolutions; parameters, names and the exported graph do not change.

    Returns
    -------
    torch.nn.Module
        ``network`` itself.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d) and _kind(layer) == ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1, "zeros"):
            vars(layer)["forward"] = partial(_forward, layer, layer.forward)
    return network


def _kind(layer: nn.Conv3d) -> tuple[Any, ...]:
    return layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode


def _forward(layer: nn.Conv3d, plain: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    if torch.jit.is_tracing() or not _is_slow(image):  # type: ignore[attr-defined, no-untyped-call]
        return plain(image)
    result: Tensor = _ByHalves.apply(image, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return result


def _is_slow(image: Tensor) -> bool:
    """Return True if PyTorch would use its own kernel."""
    lower = torch.is_autocast_enabled("cpu")  # the convolution is then in bfloat16
    single = image.ndim == 5 and len(image) == 1 and image.dtype == torch.float32 and image.device.type == "cpu"
    return single and not lower and image.shape[1] >= FEWEST_CHANNELS and image.shape[1:4].numel() <= MOST_ROWS


class _ByHalves(torch.autograd.Function):
    """Convolves two halves of a sample. Only the sample itself is kept for the backward pass, not the halves."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(image, weight)
        two = nn.functional.conv3d(_halves(image, around=1), weight, bias, padding=(1, 1, 0))
        return torch.cat((two[:1], two[1:, ..., : image.shape[-1] - two.shape[-1]]), -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, weight = ctx.saved_tensors
        arguments = (weight.shape[:1], (1, 1, 1), (1, 1, 0), (1, 1, 1), False, (0, 0, 0), 1, ctx.needs_input_grad)
        halves = (_halves(gradient, around=0), _halves(image, around=1))
        two, *rest = torch.ops.aten.convolution_backward(*halves, weight, *arguments)
        return _added(two, image.shape[-1]) if two is not None else None, *rest


def _halves(sample: Tensor, *, around: int) -> Tensor:
    """Cut (1, channels, depth, height, width) into two halves along the width.

    Parameters
    ----------
    around
        Columns added on both sides of each half: the other half's, or zeros outside the sample.
    """
    width = sample.shape[-1]
    half = -(-width // 2)
    padded = nn.functional.pad(sample[0], (around, 2 * half - width + around))
    return padded.unfold(-1, half + 2 * around, half).movedim(-2, 0).contiguous()


def _added(two: Tensor, width: int) -> Tensor:
    """Add up the gradient of a sample from those of its halves, which have one column added on both sides."""
    half = two.shape[-1] - 2
    both = (*two.shape[1:-1], 2 * half + 2)
    whole: Tensor = torch.ops.aten.unfold_backward(two.movedim(0, -2), both, 3, half + 2, half)
    return whole[None, ..., 1 : width + 1].contiguous()
