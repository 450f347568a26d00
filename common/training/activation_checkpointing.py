"""Activation checkpointing: which activations are kept for the backward pass and which are recomputed.

A policy applies to a list of blocks, the units in which the network is written. Activations between two blocks are
always kept.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from common.training.batch_norm import frozen_statistics
from common.training.recomputation import EXPENSIVE, Level, Segment, choose, operator_name

if TYPE_CHECKING:
    import torch

NONE = "none"
UNIFORM: Mapping[str, Level] = MappingProxyType({NONE: Level.KEEP, "cheap": Level.CHEAP, "blocks": Level.RECOMPUTE})
"""Policies that treat all blocks alike."""
PARTS = 8
POLICIES = (NONE, *(f"{part}/{PARTS}" for part in range(1, PARTS + 1)))
"""What a planner chooses from, from the fastest to the policy that needs least memory: ``3/8`` recomputes what saves
three eighths of the bytes that recomputation can save, in the least time (``recomputation.choose``)."""


def apply(
    policy: str,
    blocks: "Sequence[torch.nn.Module]",
    measure: Callable[[], Sequence[Segment]],
) -> None:
    """Apply one of ``POLICIES`` or ``UNIFORM`` to ``blocks``.

    Parameters
    ----------
    measure
        Returns ``recomputation.measure`` of the network; called for a share only.
    """
    if policy in UNIFORM:
        set_levels(blocks, [UNIFORM[policy]] * len(blocks))
    else:
        levels = choose(measure(), float(Fraction(policy)))
        set_levels([blocks[index] for index in levels], list(levels.values()))


def set_levels(blocks: "Sequence[torch.nn.Module]", levels: Sequence[Level]) -> None:
    """Replace ``forward`` of each block that recomputes; parameters, names and gradients do not change."""
    from torch.utils.checkpoint import checkpoint

    for block, level in zip(blocks, levels, strict=True):
        if level is not Level.KEEP:
            contexts = partial(_contexts, block, level)
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def _contexts(block: "torch.nn.Module", level: Level) -> tuple[Any, Any]:
    """Return the contexts of a block's first and second forward pass; the second must not count samples again."""
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    if level is Level.RECOMPUTE:
        return nullcontext(), frozen_statistics(block)
    first, again = create_selective_checkpoint_contexts(_decide)  # type: ignore[no-untyped-call]
    return first, _inside(frozen_statistics(block), again)


def _decide(context: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
    from torch.utils.checkpoint import CheckpointPolicy

    kept = operator_name(operator) in EXPENSIVE
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _inside(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield
