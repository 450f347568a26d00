"""Convolve single samples as fast as two: on a CPU in float32, torch does not hand them to oneDNN.

A convolution of one sample goes to oneDNN if channels x depth x height > 20,480 (``ConvParams::use_mkldnn`` in
aten/src/ATen/native/Convolution.cpp: a rule for images, which leaves out a volume's width). The deeper layers of a 3D
network are below that, and torch's own kernel copies each voxel 27 times and takes 1.2 to 9 times as long. Two samples
always go to oneDNN, so a single one gets another beside it, of zeros, whose result is dropped: twice the arithmetic,
and a step on one patch takes half to eight tenths of the time (``make bench-promise_allocator ONLY='single-*'``).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MOST_ROWS = 20_480
"""Channels x depth x height up to which torch uses its own kernel."""
KERNEL, FEWEST_CHANNELS = (3, 3, 3), 4
"""Convolutions that gain: smaller kernels, and one or two channels, are faster in torch's own."""


def speed_up(network: nn.Module) -> nn.Module:
    """Change the ``forward`` of the convolutions that gain; parameters, names and what is exported stay as they are.

    Returns
    -------
    torch.nn.Module
        ``network`` itself.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d) and (layer.kernel_size, layer.groups, layer.padding_mode) == (
            KERNEL,
            1,
            "zeros",
        ):
            vars(layer)["forward"] = partial(_forward, layer, layer.forward)
    return network


def _forward(layer: nn.Conv3d, plain: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    if torch.jit.is_tracing() or isinstance(layer.padding, str) or not _is_slow(image):  # type: ignore[attr-defined, no-untyped-call]
        return plain(image)
    found: Tensor = _BesideZeros.apply(image, layer.weight, layer.bias, layer)  # type: ignore[no-untyped-call]
    return found


def _is_slow(image: Tensor) -> bool:
    """Whether torch would convolve this by itself."""
    lower = torch.is_autocast_enabled("cpu")  # then it is bfloat16 that is convolved
    if image.ndim != 5 or (image.dtype, image.device.type) != (torch.float32, "cpu") or lower:
        return False
    samples, channels, depth, height, _ = image.shape
    return samples == 1 and channels >= FEWEST_CHANNELS and channels * depth * height <= MOST_ROWS


class _BesideZeros(torch.autograd.Function):
    """The zeros are there while one layer is computed: what is kept for the backward pass is the sample."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv3d) -> Tensor:
        ctx.save_for_backward(image, weight)
        ctx.layer = layer
        both = nn.functional.conv3d(_two(image), weight, bias, layer.stride, layer.padding, layer.dilation)
        return both[:1].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, weight = ctx.saved_tensors
        layer = ctx.layer
        bias = None if layer.bias is None else layer.bias.shape
        how = (layer.stride, layer.padding, layer.dilation, False, (0, 0, 0), 1, ctx.needs_input_grad[:3])
        both, *rest = torch.ops.aten.convolution_backward(_two(gradient), _two(image), weight, bias, *how)
        return both[:1].clone() if both is not None else None, *rest, None


def _two(sample: Tensor) -> Tensor:
    return nn.functional.pad(sample, (0, 0) * 4 + (0, 1))
