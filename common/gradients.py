"""A backward pass that starts from gradients instead of a scalar loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Start(torch.autograd.Function):
    """A scalar whose gradients with respect to the outputs are given."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *outputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients


def backpropagate(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Do what ``torch.autograd.backward(outputs, gradients)`` does, which imports sympy to compare their shapes.

    Parameters
    ----------
    outputs, gradients
        As many of each, with equal shapes.

    Examples
    --------
    >>> row = torch.ones(2, requires_grad=True)
    >>> backpropagate([3 * row], [torch.tensor([1.0, 2.0])])
    >>> row.grad
    tensor([3., 6.])
    """
    _Start.apply(gradients, *outputs).backward()  # type: ignore[no-untyped-call]
