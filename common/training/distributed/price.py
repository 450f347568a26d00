"""Memory of a rank that a training alone does not take."""

from collections.abc import Sequence

from common.memory.footprint import Term
from common.memory.process.budget import MIB
from common.training.distributed.world import World

CONNECTION_BYTES = 1 * MIB
"""Buffers of gloo for each other rank."""
SUM_BYTES = 8 * MIB
"""Buffers of gloo while a bucket of gradients is added up."""


def ranks_terms(world: World, gradients: int, phases: Sequence[str]) -> list[Term]:
    """Return what PyTorch's distributed engine keeps: nothing for a process that is alone.

    Parameters
    ----------
    world
        The ranks.
    gradients
        Bytes of the network's gradients.
    phases
        Those in which the replicated network is there.
    """
    if world.size == 1:
        return []
    return [
        Term("buckets of gradients", gradients, "analytic", tuple(phases)),
        Term("connections to other ranks", SUM_BYTES + CONNECTION_BYTES * (world.size - 1), "measured"),
    ]
