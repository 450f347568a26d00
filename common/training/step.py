"""One training step under a ceiling, for both applications: forward and backward by micro-batches, clip, step.

The layer owns the loss's denominators. Each micro-batch contributes sums; they are divided by the counts of the whole
batch, so accumulation gives the gradients of the full batch, uneven tails and masked targets included. Losses that
couple the samples go through ``coupled``.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from common.errors import UsageError
from common.training import amp, batch_norm, gradcache, optimizers
from common.training.gradcache import Batch, CoupledLoss, Outputs
from common.training.oom_retry import Failure, attempt, repeated
from common.training.random_state import RandomState

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger("peakline.training")

PATIENCE = 3
"""Failed attempts in a row, over steps, that make the micro-batch too large; so do two in one step."""


class Loss(Protocol):
    """A sum over terms, each of which is a sum over samples (or voxels, tokens, ...) divided by how many there are."""

    def counts(self, batch: Batch, /) -> tuple["Tensor", ...]:
        """Each term's denominator, a scalar; additive over samples, and known before the forward pass."""
        ...

    def sums(self, outputs: Any, batch: Batch, /) -> tuple["Tensor", ...]:
        """Each term's numerator; ``outputs`` are the network's, a tensor or a tuple of them, float32 or wider."""
        ...


@dataclass(slots=True)
class TrainingStep:
    """The accumulate-clip-step loop, and what to do when it does not fit after all.

    A step has two halves, and a failed allocation in either is answered by releasing memory and doing that half again:
    the gradients from their start, with the same random numbers; the update from the parameter where it stopped. A
    second failure halves the micro-batch for good.

    Attributes
    ----------
    optimizer
        One of ``common.training.optimizers``, or any other if a failed allocation in its step may be final.
    micro_batch
        Samples per forward pass.
    amp
        ``"bf16"``, ``"fp16"``: forward in that precision where autocast deems it safe, fp16 with a gradient scaler;
        ``"off"``: as the parameters are.
    clip
        Largest gradient norm; 0: unlimited.
    inputs
        How many tensors of a batch, from the first, are the network's positional arguments.
    step_in_backward
        Update each parameter as soon as its gradient is there, so that gradients are never all alive.
    on_shrink
        Told the new micro-batch.

    Raises
    ------
    UsageError
        Step-in-backward with clipping, with a gradient scaler, or in a step of several micro-batches, all of which
        need every gradient at once.
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
    scaler: "torch.amp.GradScaler | None" = field(init=False, default=None)
    _stepped: int = field(init=False, default=0)
    """Parameters that this step's backward pass has updated already."""
    _unlucky: int = field(init=False, default=0)
    """Failed attempts since the last step without one."""

    def __post_init__(self) -> None:
        if self.amp == "fp16":
            self.scaler = _scaler(next(self.network.parameters()).device, {})
        if self.step_in_backward:
            if self.clip or self.scaler is not None:
                raise UsageError("step_in_backward cannot clip or scale gradients, which needs all of them at once")
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
            When a single sample does not fit either.
        """
        device = batch[0].device
        random, failed = RandomState.now(device), 0
        scaling = self.state_dict()
        while isinstance(loss := attempt(partial(self._gradients, batch)), Failure):
            failed += 1
            self._unlucky += 1
            if self._stepped or (failed > 1 and self.micro_batch <= 1):
                raise loss.error
            self.optimizer.zero_grad(set_to_none=True)
            if self.scaler is not None:  # it may have been in the middle of a step
                self.scaler = _scaler(device, scaling)
            random.restore()
            if failed > 1 or self._unlucky >= PATIENCE:
                self._shrink()
        if not failed:
            self._unlucky = 0
        if not self.step_in_backward:
            repeated(self._update)
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler is not None:
            self.scaler.update()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """What the step itself remembers, as JSON: the gradient scaler's state under fp16."""
        return self.scaler.state_dict() if self.scaler is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)

    def _gradients(self, batch: Batch) -> "Tensor":
        """Forward and backward; the batch's gradients are in the parameters, its loss is returned."""
        import torch

        self._stepped = 0
        parts = self._parts(batch)
        if isinstance(self.loss, CoupledLoss):
            total = gradcache.backward(self.network, self._forward, self.loss, batch, parts, self._scaled)
        else:
            counts = self.loss.counts(batch)
            total = torch.zeros((), dtype=torch.float64, device=batch[0].device)
            for part in parts:
                sums = self.loss.sums(self._forward(part), part)
                loss = torch.stack([term / count.clamp(min=1) for term, count in zip(sums, counts, strict=True)]).sum()
                del sums  # the graph keeps what backward needs, and lets go of it as it goes
                self._scaled(loss).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip:
            self._clip()
        return total

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

    def _forward(self, part: Batch) -> Outputs:
        import torch

        precision = amp.precision(self.amp)
        with torch.autocast(part[0].device.type, precision, enabled=precision is not None):
            return _widened(self.network(*part[: self.inputs]))

    def _parts(self, batch: Batch) -> list[Batch]:
        size, samples = self.micro_batch, len(batch[0])
        if size < samples:
            if self.step_in_backward:
                raise UsageError(f"step_in_backward: {samples} samples do not fit in one micro-batch of {size}")
            if names := batch_norm.active(self.network):
                log.warning("accumulation is not exact: %s normalise over micro-batches", ", ".join(names))
        return [[tensor[start : start + size] for tensor in batch] for start in range(0, samples, size)]

    def _scaled(self, loss: "Tensor") -> "Tensor":
        return loss if self.scaler is None else self.scaler.scale(loss)

    def _shrink(self) -> None:
        self._unlucky = 0
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
    """Losses are computed in float32 or wider."""
    import torch

    if isinstance(outputs, tuple):
        return tuple(
            output.float() if output.dtype in (torch.bfloat16, torch.float16) else output for output in outputs
        )
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
