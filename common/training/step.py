"""One training step for both applications: forward and backward in micro-batches, clip, optimiser step.

This module computes the loss's denominators. Each micro-batch contributes sums, which are divided by the counts of the
whole batch. Accumulation therefore gives the gradients of the full batch, also with uneven micro-batches and masked
targets. Losses that couple the samples are accumulated by ``gradcache``.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from common.errors import UsageError
from common.training import amp, batch_norm, gradcache, optimizers
from common.training.distributed.group import ALONE, Group, LostRank, watched
from common.training.gradcache import Batch, CoupledLoss, Outputs, RandomState
from common.training.oom_retry import Failure, attempt, repeated

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger("peakline.training")

PATIENCE = 3
"""The micro-batch is halved after this many steps in a row with a failed allocation, or after two failures in one."""


class Loss(Protocol):
    """A sum over terms, each of which is a mean over samples, voxels, tokens or the like."""

    def counts(self, batch: Batch, /) -> tuple["Tensor", ...]:
        """Return each term's denominator, a scalar; it is additive over samples and needs no forward pass."""
        ...

    def sums(self, outputs: Any, batch: Batch, /) -> tuple["Tensor", ...]:
        """Return each term's numerator; ``outputs`` are the network's tensor or tuple of tensors, float32 or wider."""
        ...


@dataclass(slots=True)
class TrainingStep:
    """The loop of accumulation, clipping and optimiser step, with recovery from failed allocations.

    A step has two halves. After a failed allocation memory is released and the half is repeated: the gradients from
    their start with the same random numbers, the update from the parameter at which it stopped. A second failure halves
    the micro-batch for the rest of the training.

    Attributes
    ----------
    optimizer
        One of ``common.training.optimizers``, or any other if a failed allocation in its step may end the training.
    micro_batch
        Samples per forward pass.
    amp
        ``"bf16"`` or ``"fp16"``: autocast in that precision, with a gradient scaler for fp16; ``"off"``: the
        parameters' own precision.
    clip
        Largest gradient norm; 0: unlimited.
    inputs
        The first ``inputs`` tensors of a batch are the network's positional arguments.
    step_in_backward
        Update each parameter as soon as its gradient is complete, so that never all gradients are alive.
    on_shrink
        Called with the new micro-batch.
    group
        The ranks that have a share of each batch. Gradients, loss and denominators are those of the whole batch, the
        same on every rank. A failed allocation ends the training then, since the others may be waiting for this one.
    leaves
        Returns the tensors that the network has loaded for a batch, the same on all ranks: their gradients are added up
        after the backward pass, as those of parameters are during it.

    Raises
    ------
    UsageError
        Step-in-backward with clipping, with a gradient scaler, over several ranks, or in a step of several
        micro-batches; all of these need every gradient at once.

    Examples
    --------
    >>> import torch
    >>> from common.training.losses import CrossEntropy
    >>> network = torch.nn.Linear(3, 2)
    >>> step = TrainingStep(network, torch.optim.SGD(network.parameters(), lr=0.1), CrossEntropy(), micro_batch=2)
    >>> loss = step([torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)])
    """

    network: "torch.nn.Module"
    optimizer: "torch.optim.Optimizer"
    loss: Loss | CoupledLoss
    micro_batch: int
    amp: str = "off"
    clip: float = 0.0
    inputs: int = 1
    step_in_backward: bool = False
    on_shrink: Callable[[int], None] = lambda micro_batch: None
    group: Group = ALONE
    leaves: "Callable[[], Sequence[Tensor]]" = tuple
    scaler: "torch.amp.GradScaler | None" = field(init=False, default=None)
    _parallel: "torch.nn.Module" = field(init=False)
    """The network, with gradients that are added over the ranks."""
    _stepped: int = field(init=False, default=0)
    """Parameters that this step's backward pass has already updated."""
    _failures: int = field(init=False, default=0)
    """Failed attempts since the last step without a failure."""

    def __post_init__(self) -> None:
        self._parallel = self.group.replicated(self.network)
        if self.amp == "fp16":
            self.scaler = _scaler(next(self.network.parameters()).device, {})
        if self.step_in_backward:
            if self.clip or self.scaler is not None or self.group.several:
                raise UsageError("step_in_backward cannot clip, scale or share gradients, which needs all at once")
            optimizers.step_in_backward(self.optimizer, self._count)

    def __call__(self, batch: Batch) -> "Tensor":
        """Do one optimiser step on ``batch``.

        Returns
        -------
        Tensor
            The batch's loss, a detached scalar.

        Raises
        ------
        RuntimeError, MemoryError
            Not even a single sample fits.
        LostRank
            Another rank has ended; nothing of this step was done.
        """
        device = batch[0].device
        random, failed = RandomState.now(device), 0
        scaling = self.state_dict()
        while isinstance(loss := attempt(partial(self._shared_gradients, batch, random)), Failure):
            failed += 1
            self._failures += 1
            if self.group.several or self._stepped or (failed > 1 and self.micro_batch <= 1):
                raise loss.error
            self.optimizer.zero_grad(set_to_none=True)
            if self.scaler is not None:  # it may have been in the middle of a step
                self.scaler = _scaler(device, scaling)
            random.restore()
            if failed > 1 or self._failures >= PATIENCE:
                self._shrink()
        if not failed:
            self._failures = 0
        if not self.step_in_backward:
            repeated(self._update)
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler is not None:
            self.scaler.update()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the step's own state, serialisable as JSON: the gradient scaler's with fp16, else nothing."""
        return self.scaler.state_dict() if self.scaler is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state that ``state_dict`` returned."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)

    def _shared_gradients(self, batch: Batch, random: RandomState) -> "Tensor":
        """``_gradients``; a rank that is left alone is as it was before the step, and may write a checkpoint."""
        if not self.group.several:
            return self._gradients(batch)
        try:
            with watched():
                return self._gradients(batch)
        except LostRank:
            self.optimizer.zero_grad(set_to_none=True)
            random.restore()
            raise

    def _gradients(self, batch: Batch) -> "Tensor":
        """Run forward and backward; leaves the batch's gradients in the parameters and returns its loss."""
        import torch

        self._stepped = 0
        micro_batches = self._micro_batches(batch)
        if isinstance(self.loss, CoupledLoss):
            total = gradcache.backward(
                self.network, self._forward, self.loss, batch, micro_batches, self._scaled, self.group, self._adding
            )
        else:
            counts = self.group.summed(*self.loss.counts(batch))
            total = torch.zeros((), dtype=torch.float64, device=batch[0].device)
            for number, micro in enumerate(micro_batches, start=1):
                with self._adding(number == len(micro_batches)):
                    sums = self.loss.sums(self._forward(micro), micro)
                    terms = [term / count.clamp(min=1) for term, count in zip(sums, counts, strict=True)]
                    loss = torch.stack(terms).sum()
                    del sums, terms  # the graph keeps what backward needs and frees it on the way
                    self._scaled(loss).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            (total,) = self.group.summed(total)
        if self.group.several:
            self._add_leaves()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip:
            self._clip()
        return total

    def _add_leaves(self) -> None:
        import torch

        for leaf in self.leaves():
            if leaf.grad is None:  # this rank had nothing of the batch
                leaf.grad = torch.zeros_like(leaf)
            self.group.added(leaf.grad)

    def _update(self) -> None:
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)

    def _clip(self) -> None:
        import torch

        parameters = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in parameters):
            raise UsageError("clip: the norm of sparse gradients is not defined here; train with clip 0")
        torch.nn.utils.clip_grad_norm_(parameters, self.clip)

    def _forward(self, micro: Batch) -> Outputs:
        import torch

        precision = amp.precision(self.amp)
        with torch.autocast(micro[0].device.type, precision, enabled=precision is not None):
            return _widened(self._parallel(*micro[: self.inputs]))

    def _adding(self, last: bool) -> AbstractContextManager[Any]:
        return self.group.adding(self._parallel, last=last)

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        size, samples = self.micro_batch, len(batch[0])
        if size < samples or self.group.several:
            if self.step_in_backward:
                raise UsageError(f"step_in_backward: {samples} samples do not fit in one micro-batch of {size}")
            if names := batch_norm.active(self.network):
                log.warning("accumulation is not exact: %s normalise over micro-batches", ", ".join(names))
        return [[tensor[start : start + size] for tensor in batch] for start in range(0, samples, size)]

    def _scaled(self, loss: "Tensor") -> "Tensor":
        return loss if self.scaler is None else self.scaler.scale(loss)

    def _shrink(self) -> None:
        self._failures = 0
        self.micro_batch = max(1, -(-self.micro_batch // 2))
        self.on_shrink(self.micro_batch)

    def _count(self) -> None:
        self._stepped += 1


def _scaler(device: "torch.device", state: dict[str, Any]) -> "torch.amp.GradScaler":
    import torch

    scaler = torch.amp.GradScaler(device.type)
    if state:
        scaler.load_state_dict(state)
    return scaler


def _widened(outputs: Outputs) -> Outputs:
    """Convert half-precision outputs to float32, in which losses are computed."""
    import torch

    if isinstance(outputs, tuple):
        return tuple(
            output.float() if output.dtype in (torch.bfloat16, torch.float16) else output for output in outputs
        )
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
