"""Memory of a rank that a training alone does not take."""

from collections.abc import Sequence

from common.memory.footprint import Term
from common.memory.process.budget import KIB, MIB
from common.training.distributed.world import World

CONNECTION_BYTES = 64 * KIB
"""Memory of a connection to another rank (measured with 2 and 4 ranks: less than 0.02 MiB each)."""
SUM_BYTES = 4 * MIB
"""Buffers of gloo, whose two threads add up a bucket of gradients each (measured: 2 MiB for one sum of 50 MiB)."""


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
