"""Memory of ``imaging train`` where parameters and optimiser states are shared out over ranks (``sharding``)."""

from collections.abc import Mapping

from apps.imaging.training.phases import CHECKPOINT, EXPORT, TRAIN, VALIDATE
from common.memory.footprint import Term
from common.training.distributed import sharding
from common.training.distributed.price import ranks_terms
from common.training.distributed.row_files import BLOCK_BYTES
from common.training.distributed.world import World

SLOWER = 1.3
"""Time of a step over that with whole states, in which gradients alone are sent: parameters are too, twice."""
PADDING = 1.05
"""The largest part over an even one: axis 0 is cut, and has a few numbers in the last layer."""
BLOCKS = 3
"""Blocks of a checkpoint at the same time: one that is received, the one before, and a copy."""


def terms(world: World, cost: Mapping[str, int], *, average: int) -> list[Term]:
    """Return what takes the place of a whole network's states.

    Parameters
    ----------
    world
        The ranks.
    cost
        Of the traced step: bytes of ``parameters``, ``gradients``, ``optimizer``, and ``largest``, the parameters of
        the largest layer.
    average
        Bytes of the whole average of the weights.
    """
    train, lasting, validating = (TRAIN,), (TRAIN, VALIDATE, CHECKPOINT, EXPORT), (VALIDATE, EXPORT)

    def own(size: int) -> int:
        return int(PADDING * size / world.size)

    return [
        Term("part of the parameters", own(cost["parameters"]), "analytic", lasting),
        Term("part of the gradients", own(cost["gradients"]), "analytic", train),
        Term("part of the optimizer states", own(cost["optimizer"]), "analytic", lasting),
        Term("part of the average", own(average), "analytic", lasting),
        Term("gathered layers", sharding.GATHERED * cost["largest"], "analytic", train),
        Term("gathered network", 2 * cost["parameters"], "analytic", validating),
        Term("blocks of a checkpoint", BLOCKS * BLOCK_BYTES, "analytic", (CHECKPOINT,)),
        Term("code of FSDP", sharding.CODE_BYTES, "measured", lasting),
        *ranks_terms(world, 0, lasting),
    ]
