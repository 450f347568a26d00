"""Activation checkpointing: which activations are kept for the backward pass and which are recomputed.

A policy applies to a list of blocks, the units in which the network is written. Activations between two blocks are
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
    """Recompute the inside of blocks in the backward pass.

    Attributes
    ----------
    every
        Recompute the first of every ``every`` blocks; the others keep all activations.
    keep
        Operators of ``torch.ops.aten`` whose results are kept nevertheless, because they are expensive.
    """

    every: int = 1
    keep: tuple[str, ...] = ()

    def apply(self, blocks: "Sequence[torch.nn.Module]") -> None:
        """Replace the blocks' ``forward``; parameters, names and gradients do not change."""
        from torch.utils.checkpoint import checkpoint

        for block in blocks[:: self.every]:
            context = partial(self._contexts, block)
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=context)

    def _contexts(self, block: "torch.nn.Module") -> tuple[Any, Any]:
        """Return the contexts of a block's first and second forward pass; the second must not count samples again."""
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
"""Policies by the plan's names, from the fastest to the one that needs least memory."""


def apply(name: str, blocks: "Sequence[torch.nn.Module]") -> None:
    """Apply the policy ``name`` of ``POLICIES`` to ``blocks``."""
    policy = POLICIES[name]
    if policy is not None:
        policy.apply(blocks)
