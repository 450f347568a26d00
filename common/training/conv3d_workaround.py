"""Convolve single samples as fast as two: on a CPU in float32, torch does not hand them to oneDNN.

A convolution of one sample goes to oneDNN if channels x depth x height > 20,480 (``ConvParams::use_mkldnn`` in
aten/src/ATen/native/Convolution.cpp: a rule for images, which leaves out a volume's width). The deeper layers of a 3D
network are below that, and torch's own kernel copies each voxel 27 times and takes up to ten times as long. Two samples
always go to oneDNN, so a single one is cut along its width into two that overlap: the same sums, and a step on one
patch takes 0.45 to 0.7 of the time (``make bench-promise_allocator ONLY='single-*'``).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MOST_ROWS = 20_480
"""Channels x depth x height up to which torch uses its own kernel."""
FEWEST_CHANNELS = 4
"""One or two are faster in torch's own kernel, as are smaller convolutions than of 3 x 3 x 3."""


def speed_up(network: nn.Module) -> nn.Module:
    """Change the ``forward`` of 3 x 3 x 3 convolutions; parameters, names and what is exported stay as they are.

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
    found: Tensor = _ByHalves.apply(image, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return found


def _is_slow(image: Tensor) -> bool:
    """Whether torch would convolve this by itself."""
    lower = torch.is_autocast_enabled("cpu")  # then it is bfloat16 that is convolved
    single = image.ndim == 5 and len(image) == 1 and image.dtype == torch.float32 and image.device.type == "cpu"
    return single and not lower and image.shape[1] >= FEWEST_CHANNELS and image.shape[1:4].numel() <= MOST_ROWS


class _ByHalves(torch.autograd.Function):
    """The halves are there while one layer is computed: what is kept for the backward pass is the sample."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(image, weight)
        two = nn.functional.conv3d(_halves(image, around=1), weight, bias, padding=(1, 1, 0))
        return torch.cat((two[:1], two[1:, ..., : image.shape[-1] - two.shape[-1]]), -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, weight = ctx.saved_tensors
        place = (weight.shape[:1], (1, 1, 1), (1, 1, 0), (1, 1, 1), False, (0, 0, 0), 1, ctx.needs_input_grad)
        halves = (_halves(gradient, around=0), _halves(image, around=1))
        two, *rest = torch.ops.aten.convolution_backward(*halves, weight, *place)
        return _added(two, image.shape[-1]) if two is not None else None, *rest


def _halves(sample: Tensor, *, around: int) -> Tensor:
    """(1, channels, depth, height, width) as two, each with so many columns of the other; zeros are where none are."""
    width = sample.shape[-1]
    half = -(-width // 2)
    padded = nn.functional.pad(sample[0], (around, 2 * half - width + around))
    return padded.unfold(-1, half + 2 * around, half).movedim(-2, 0).contiguous()


def _added(two: Tensor, width: int) -> Tensor:
    """The gradient of a sample from that of its halves, which have a column around them."""
    half = two.shape[-1] - 2
    both = (*two.shape[1:-1], 2 * half + 2)
    whole: Tensor = torch.ops.aten.unfold_backward(two.movedim(0, -2), both, 3, half + 2, half)
    return whole[None, ..., 1 : width + 1].contiguous()
