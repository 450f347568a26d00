"""Activation checkpointing: which activations are kept for the backward pass and which are computed again.

A policy is applied to a list of blocks, the units that the network's author thinks in; what lies between two blocks is
always kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from common.training.batch_norm import frozen_statistics

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Recompute:
    """Compute again in the backward pass what happened inside blocks."""

    every: int = 1
    """Of the blocks, in order, the first of so many; the others keep everything."""
    keep: tuple[str, ...] = ()
    """Operators below ``torch.ops.aten`` whose results are kept all the same, because they are dear to compute."""

    def apply(self, blocks: "Sequence[torch.nn.Module]") -> None:
        """Change the blocks' ``forward``; parameters, names and gradients stay as they are."""
        from torch.utils.checkpoint import checkpoint

        for block in blocks[:: self.every]:
            context = partial(self._contexts, block)
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=context)

    def _contexts(self, block: "torch.nn.Module") -> tuple[Any, Any]:
        """What surrounds the first forward pass of a block, and its second, which must not count samples twice."""
        from contextlib import nullcontext

        from torch.utils.checkpoint import create_selective_checkpoint_contexts

        if not self.keep:
            return nullcontext(), frozen_statistics(block)
        first, again = create_selective_checkpoint_contexts(self._decide)  # type: ignore[no-untyped-call]
        return first, _inside(frozen_statistics(block), again)

    def _decide(self, context: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
        from torch.utils.checkpoint import CheckpointPolicy

        kept = operator.name().removeprefix("aten::").partition(".")[0] in self.keep
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _inside(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield


POLICIES: Mapping[str, Recompute | None] = MappingProxyType(
    {
        "none": None,
        "cheap": Recompute(keep=("convolution", "addmm", "mm", "bmm")),
        "alternate": Recompute(every=2),
        "blocks": Recompute(),
    }
)
"""By the names that the plan uses, from the fastest to the one that holds least."""


def apply(name: str, blocks: "Sequence[torch.nn.Module]") -> None:
    """Apply the policy of this name."""
    policy = POLICIES[name]
    if policy is not None:
        policy.apply(blocks)
