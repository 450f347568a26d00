"""Train a network that will be quantised: convolutions see their weights and inputs rounded to 8 bits.

Weights are rounded to 255 symmetric steps for each output channel, inputs to 256 steps between each sample's smallest
and largest value, zero among them, as OpenVINO's int8 convolutions have them. The gradient passes unchanged (Bengio et
al., arXiv 1308.3432): nothing lies outside of the range, so nothing is clipped. Ranges are those of a sample, so that
micro-batches give the gradients of the whole batch, and nothing has to be kept between steps.

Rounding takes place in training alone: validation, the exported network and the stored weights are in float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import BadInput

WEIGHT_STEPS, INPUT_STEPS = 127, 255
"""Largest whole number of a weight, which has a sign, and of an input."""
TINY = 1e-12
"""Least size of a step: of a tensor of zeros."""


def round_in_training(network: nn.Module, *, but: str | None = None) -> int:
    """Replace ``forward`` of every convolution; parameters, names and the exported graph do not change.

    Parameters
    ----------
    but
        Name of a convolution that stays in float32: the head.

    Returns
    -------
    int
        Number of convolutions.

    Raises
    ------
    BadInput
        If there is none.
    """
    count = 0
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) and name != but:
            vars(layer)["forward"] = partial(_forward, layer, layer.forward)
            count += 1
    if not count:
        raise BadInput("quantise=int8: this network has no convolution that could be quantised")
    return count


def rounded_weight(weight: Tensor, axis: int) -> Tensor:
    """A weight in steps of the largest value of each output channel, along ``axis``, over 127."""
    others = [one for one in range(weight.ndim) if one != axis]
    step = weight.detach().abs().amax(others, keepdim=True).clamp(min=TINY) / WEIGHT_STEPS
    result: Tensor = _Rounded.apply(weight, step, None)  # type: ignore[no-untyped-call]
    return result


def rounded_input(image: Tensor) -> Tensor:
    """Samples (B, C, x, y, z), each in 256 steps between its smallest and its largest value and zero."""
    values, others = image.detach(), list(range(1, image.ndim))
    low, high = (extreme(others, keepdim=True).float() for extreme in (values.amin, values.amax))
    low, high = low.clamp(max=0), high.clamp(min=0)
    step = ((high - low) / INPUT_STEPS).clamp(min=TINY)
    result: Tensor = _Rounded.apply(image, step, torch.round(-low / step))  # type: ignore[no-untyped-call]
    return result


def _forward(layer: Any, plain: Callable[..., Tensor], image: Tensor, *others: Any) -> Tensor:
    if not layer.training or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return plain(image, *others)
    weight = layer.weight
    layer._parameters["weight"] = rounded_weight(weight, int(isinstance(layer, nn.ConvTranspose3d)))
    try:
        return plain(rounded_input(image), *others)
    finally:
        layer._parameters["weight"] = weight


class _Rounded(torch.autograd.Function):
    """Whole multiples of a step; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, zero: Tensor | None) -> Tensor:
        result = values / step
        if zero is None:
            return result.round_().mul_(step).to(values.dtype)
        return result.add_(zero).round_().clamp_(0, INPUT_STEPS).sub_(zero).mul_(step).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None
