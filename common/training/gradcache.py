"""Exact accumulation of losses that couple the samples of a batch, by gradient caching (GradCache, arXiv 2101.06983).

Batch Dice or an in-batch softmax is no sum over micro-batches; treating it as one is 7 to 50 % wrong. Instead the
network runs twice over the micro-batches. The first pass keeps no graph, only each sample's rows, the numbers that the
loss depends on. The loss of all rows gives the gradient of each row. The second pass, with the first one's random
numbers, propagates it through the network. Peak memory is that of one micro-batch; the cost is one forward pass more.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from common.training.batch_norm import frozen_statistics
from common.training.distributed.group import ALONE, Group

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Batch = Sequence["Tensor"]
"""Inputs, then targets; all have the samples along axis 0."""
Outputs: TypeAlias = "Tensor | tuple[Tensor, ...]"
"""The return value of a network."""


@dataclass(frozen=True, slots=True)
class RandomState:
    """States of the generators that a network on one device uses: the host's and the device's own."""

    host: "Tensor"
    device: "torch.device"
    on_device: "Tensor | None"

    @classmethod
    def now(cls, device: "torch.device") -> "RandomState":
        """Return the present state."""
        import torch

        on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), device, on_device)

    def restore(self) -> None:
        """Set the generators to this state."""
        import torch

        torch.set_rng_state(self.host)
        if self.on_device is not None:
            torch.cuda.set_rng_state(self.on_device, self.device)


@runtime_checkable
class CoupledLoss(Protocol):
    """A loss of the whole batch that is not a sum over its samples."""

    def rows(self, outputs: Any, batch: Batch, /) -> "tuple[Tensor, ...]":
        """Return the tensors that the loss depends on, samples along axis 0: the outputs, or a reduction of them."""
        ...

    def facts(self, batch: Batch, /) -> "tuple[Tensor, ...]":
        """Return what else the loss depends on, without gradients and samples along axis 0: counts, ids."""
        ...

    def value(self, rows: "tuple[Tensor, ...]", facts: "tuple[Tensor, ...]", /) -> "Tensor":
        """Return the scalar loss of the rows and facts of all samples."""
        ...


def backward(
    network: "torch.nn.Module",
    forward: Callable[[Batch], Outputs],
    loss: CoupledLoss,
    batch: Batch,
    micro_batches: Sequence[Batch],
    scaled: Callable[["Tensor"], "Tensor"],
    group: Group = ALONE,
    adding: Callable[[bool], AbstractContextManager[Any]] = lambda last: nullcontext(),
) -> "Tensor":
    """Add the whole batch's gradients to the network's parameters.

    Parameters
    ----------
    forward
        Computes the network's outputs for one micro-batch.
    micro_batches
        The batch in micro-batches, in order.
    scaled
        Maps the loss to the value that is differentiated: the loss times a gradient scaler's factor, or the loss.
    group
        The ranks that have a share of the batch each, of which ``batch`` is this one's. Rows and facts are joined over
        all ranks, so each computes the whole batch's loss.
    adding
        Context of a forward and backward pass, by whether it is the last (``Group.adding``).

    Returns
    -------
    Tensor
        The loss, a detached scalar.
    """
    import torch

    from common.gradients import backpropagate

    if len(micro_batches) == 1 and not group.several:
        value = loss.value(loss.rows(forward(batch), batch), loss.facts(batch))
        scaled(value).backward()  # type: ignore[no-untyped-call]
        return value.detach()

    _, facts = group.rows(loss.facts(batch))
    # All ranks go the same way, since a replicated network's forward pass may wait for the others'.
    if max(group.all_of(len(micro_batches))) == 1:
        with_graph = loss.rows(forward(batch), batch)
        value, gradients = _of_all(loss, [row.detach() for row in with_graph], facts, scaled, group)
        backpropagate(with_graph, gradients)
        return value

    device = batch[0].device
    states, cached = [], []
    for micro in micro_batches:
        states.append(RandomState.now(device))
        with torch.no_grad():
            cached.append(loss.rows(forward(micro), micro))
    rows = [torch.cat(pieces) for pieces in zip(*cached, strict=True)]
    sizes = [len(micro[0]) for micro in micro_batches]
    del cached
    value, gradients = _of_all(loss, rows, facts, scaled, group)
    after = RandomState.now(device)
    del rows
    pieces = zip(*(torch.split(gradient, sizes) for gradient in gradients), strict=True)
    for number, (micro, state, row_gradients) in enumerate(zip(micro_batches, states, pieces, strict=True), start=1):
        state.restore()
        with frozen_statistics(network), adding(number == len(sizes)):
            again = loss.rows(forward(micro), micro)  # the first pass has updated the statistics
            backpropagate(again, row_gradients)
    after.restore()
    return value


def _of_all(
    loss: CoupledLoss,
    rows: "Sequence[Tensor]",
    facts: "tuple[Tensor, ...]",
    scaled: Callable[["Tensor"], "Tensor"],
    group: Group,
) -> "tuple[Tensor, Sequence[Tensor]]":
    """The loss of all ranks' rows, and its gradients with respect to this rank's."""
    import torch

    own, every = group.rows(rows)
    leaves = tuple(row.requires_grad_() for row in every)
    value = loss.value(leaves, facts)
    gradients = torch.autograd.grad(scaled(value), leaves)
    return value.detach(), [gradient[own] for gradient in gradients]
