"""One training step under a ceiling, for both applications: forward and backward by micro-batches, clip, step.

The layer owns the loss's denominators. Each micro-batch contributes sums; they are divided by the counts of the whole
batch, so accumulation gives the gradients of the full batch, uneven tails and masked targets included.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from common.memory.guard import is_out_of_memory, release

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Batch = Sequence["Tensor"]
"""Inputs first, then targets; all have the samples along axis 0."""


class Loss(Protocol):
    """A sum over terms, each of which is a sum over samples (or voxels, tokens, ...) divided by how many there are."""

    def counts(self, batch: Batch, /) -> tuple["Tensor", ...]:
        """Each term's denominator, a scalar; additive over samples, and known before the forward pass."""
        ...

    def sums(self, outputs: "Tensor", batch: Batch, /) -> tuple["Tensor", ...]:
        """Each term's numerator; ``outputs`` are in float32 or wider."""
        ...


@dataclass(slots=True)
class TrainingStep:
    """The accumulate-clip-step loop, and what to do when it does not fit after all.

    Attributes
    ----------
    micro_batch
        Samples per forward pass. Halved for good when an allocation fails; the same step is then done again.
    amp
        ``"bf16"``: forward in bfloat16 where autocast deems it safe; ``"off"``: as the parameters are.
    clip
        Largest gradient norm; 0: unlimited.
    """

    network: "torch.nn.Module"
    optimizer: "torch.optim.Optimizer"
    loss: Loss
    micro_batch: int
    amp: str = "off"
    clip: float = 0.0
    on_shrink: Callable[[int], None] = lambda micro_batch: None

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
        import torch

        random_state = torch.get_rng_state()
        fresh = not self.optimizer.state
        while True:
            try:
                return self._attempt(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.micro_batch <= 1:
                    raise
            # Outside the except block: until here the traceback kept the failed step's tensors alive.
            self.optimizer.zero_grad(set_to_none=True)
            if fresh:
                self.optimizer.state.clear()
            release()
            self.micro_batch = -(-self.micro_batch // 2)
            self.on_shrink(self.micro_batch)
            torch.set_rng_state(random_state)

    def _attempt(self, batch: Batch) -> "Tensor":
        import torch

        counts = self.loss.counts(batch)
        total = torch.zeros((), dtype=torch.float64)
        for part in self._parts(batch):
            with torch.autocast(part[0].device.type, torch.bfloat16, enabled=self.amp == "bf16"):
                outputs = self.network(part[0])
            if outputs.dtype in (torch.bfloat16, torch.float16):
                outputs = outputs.float()
            sums = self.loss.sums(outputs, part)
            loss = torch.stack([term / count.clamp(min=1) for term, count in zip(sums, counts, strict=True)]).sum()
            del outputs, sums  # the graph keeps what backward needs, and lets go of it as it goes
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        for start in range(0, len(batch[0]), self.micro_batch):
            yield [tensor[start : start + self.micro_batch] for tensor in batch]
