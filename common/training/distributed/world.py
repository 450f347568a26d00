"""Which rank this process is, of how many, as PyTorch's launcher (``torchrun``) says it. This imports no torch."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import UsageError
from common.memory.process.budget import MIB

LAUNCHER_BYTES = 164 * MIB
"""Memory of the launcher on each node, which is part of no rank: PSS of ``torchrun`` beside 2 and 4 ranks was 162 to
164 MiB, 146 of them its own (PyTorch 2.13)."""
HOW = "start it as PYTHONSAFEPATH=1 torchrun --nproc-per-node N -m apps.imaging train ..., or apps.recsys"
"""End of messages on a launch that is not understood."""
_LAUNCHER = "TORCHELASTIC_RUN_ID"
"""Environment variable that ``torchrun`` sets."""
_ROOT = Path(__file__).resolve().parents[3]
"""The directory that holds peakline's packages."""


@dataclass(frozen=True, slots=True)
class World:
    """One process of a training, and how many there are.

    Attributes
    ----------
    rank
        Number of this process, from 0.
    size
        Number of processes of the training.
    local_size
        Number of processes of the training on this node.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "World":
        """Read what the launcher has set; without a launcher this process is alone.

        Raises
        ------
        UsageError
            Variables that are missing or contradict each other, or a working directory that may be imported from.

        Examples
        --------
        >>> World.of_environment({})
        World(rank=0, size=1, local_size=1)
        """
        if "WORLD_SIZE" not in environment or environment["WORLD_SIZE"] == "1":
            return cls()
        size, rank = _number(environment, "WORLD_SIZE"), _number(environment, "RANK")
        local_size = _number(environment, "LOCAL_WORLD_SIZE", "1")
        if not (0 <= rank < size and 1 <= local_size <= size):
            raise UsageError(f"RANK={rank}, WORLD_SIZE={size}, LOCAL_WORLD_SIZE={local_size}: not possible; {HOW}")
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not environment.get(name):
                raise UsageError(f"{name} is not set, so {size} ranks cannot find each other; {HOW}")
        if not sys.flags.safe_path and not environment.get("PYTHONSAFEPATH") and Path.cwd().resolve() != _ROOT:
            raise UsageError(f"the launcher imports from the working directory, where anything may lie; {HOW}")
        return cls(rank, size, local_size)

    @property
    def leads(self) -> bool:
        """True for the rank that plans, writes and speaks."""
        return self.rank == 0

    @property
    def beside_leader(self) -> bool:
        """True for a rank on the first node, which has the leader's disk: the launcher numbers node by node."""
        return self.rank < self.local_size

    def share(self, samples: int) -> range:
        """Return the samples of a batch that are this rank's; shares differ by at most one.

        Examples
        --------
        >>> [World(rank, 3).share(8) for rank in range(3)]
        [range(0, 2), range(2, 5), range(5, 8)]
        """
        return range(self.rank * samples // self.size, (self.rank + 1) * samples // self.size)

    def shares(self, samples: int) -> list[range]:
        """Return the shares of all ranks, in their order."""
        return [replace(self, rank=rank).share(samples) for rank in range(self.size)]

    def largest_share(self, samples: int) -> int:
        """Return the number of samples of the rank that has most."""
        return -(-samples // self.size)

    def check_batch(self, batch: int) -> None:
        """Refuse a batch of which a rank would have nothing.

        Raises
        ------
        UsageError
            The batch has fewer samples than there are ranks.
        """
        if batch < self.size:
            raise UsageError(
                f"{self.size} ranks and a batch of {batch}: a rank would have nothing to train on; use at most {batch}"
                f" ranks, or a batch of {self.size} or more (--set batch=N)"
            )

    def node_bytes(self, rank_bytes: int) -> int:
        """Return what a node holds of which each rank holds ``rank_bytes``, with the launcher."""
        return LAUNCHER_BYTES + self.local_size * rank_bytes

    def rank_share(self, node: int) -> int:
        """Return the ceiling of a rank if the node's is ``node`` bytes: what the launcher leaves, in equal parts."""
        return node if self.size == 1 else max(1, (node - LAUNCHER_BYTES) // self.local_size)


ONE = World()
"""The world of a process that is alone."""


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether PyTorch's launcher has started this process as one of several."""
    return _LAUNCHER in environment and environment.get("WORLD_SIZE", "1") != "1"


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    if not text.isdecimal():
        raise UsageError(f"{name}={text or 'nothing'} is not a number; {HOW}")
    return int(text)
