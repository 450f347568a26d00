"""Losses that couple the samples of a batch, accumulated exactly: gradient caching (GradCache, arXiv 2101.06983).

Batch Dice or an in-batch softmax cannot be summed up over micro-batches; doing so all the same is 7 to 50 % wrong.
Instead the network runs twice over the micro-batches. The first pass keeps no graph, only each sample's rows: what the
loss needs to know of it. The loss of all rows gives the gradient of each row, and the second pass, with the first
one's random numbers, sends it through the network. Peak memory is that of one micro-batch; the price is one forward
pass.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from common.training.batch_norm import frozen_statistics
from common.training.random_state import RandomState

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Batch = Sequence["Tensor"]
"""Inputs first, then targets; all have the samples along axis 0."""
Outputs: TypeAlias = "Tensor | tuple[Tensor, ...]"
"""What a network returns."""


@runtime_checkable
class CoupledLoss(Protocol):
    """A loss of the whole batch that is no sum over its samples."""

    def rows(self, outputs: Any, batch: Batch, /) -> "tuple[Tensor, ...]":
        """What the loss depends on, samples along axis 0: the outputs themselves, or fewer numbers made of them."""
        ...

    def value(self, rows: "tuple[Tensor, ...]", batch: Batch, /) -> "Tensor":
        """The scalar loss of all samples' rows; ``batch`` is the whole batch."""
        ...


def backward(
    network: "torch.nn.Module",
    forward: Callable[[Batch], Outputs],
    loss: CoupledLoss,
    batch: Batch,
    parts: Sequence[Batch],
    scaled: Callable[["Tensor"], "Tensor"],
) -> "Tensor":
    """Add the whole batch's gradients to the network's parameters.

    Parameters
    ----------
    forward
        The network's outputs for one part.
    parts
        The batch in micro-batches, in order.
    scaled
        What is differentiated instead of the loss: the loss times a gradient scaler's factor, or itself.

    Returns
    -------
    Tensor
        The loss, a detached scalar.
    """
    import torch

    if len(parts) == 1:
        value = loss.value(loss.rows(forward(batch), batch), batch)
        scaled(value).backward()  # type: ignore[no-untyped-call]
        return value.detach()

    device = batch[0].device
    states, cached = [], []
    for part in parts:
        states.append(RandomState.now(device))
        with torch.no_grad():
            cached.append(loss.rows(forward(part), part))
    rows = tuple(torch.cat(pieces).requires_grad_() for pieces in zip(*cached, strict=True))
    sizes = [len(part[0]) for part in parts]
    del cached
    value = loss.value(rows, batch)
    gradients = torch.autograd.grad(scaled(value), rows)
    value, after = value.detach(), RandomState.now(device)
    del rows
    pieces = zip(*(torch.split(gradient, sizes) for gradient in gradients), strict=True)
    for part, state, wanted in zip(parts, states, pieces, strict=True):
        state.restore()
        with frozen_statistics(network):  # the first pass has updated them
            again = loss.rows(forward(part), part)
        torch.autograd.backward(again, wanted)
    after.restore()
    return value
