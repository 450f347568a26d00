"""How ranks find each other, and what they agree on before any of them trains.

The leader plans alone, without PyTorch and before it loads anything, as a command that trains by itself does. The other
ranks load their libraries meanwhile and wait. Words go through the launcher's store, as JSON; only then is the group of
processes made. So a plan that does not fit is refused before anything large is loaded by the leader.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from common import __version__
from common.errors import UsageError
from common.training.distributed.group import PATIENCE_SECONDS, Group, LostRank, watched
from common.training.distributed.world import World
from common.training.resume import differing

PLANNING_SECONDS = 3600
"""For how long a rank waits for the leader, which may have to measure what a step takes."""
LOOK_SECONDS = 0.05
"""Between two looks into the store. A wait inside the store's own code could not be interrupted."""
SAME = 0.98
"""Ceilings that differ by less than this share are not talked of: ``auto`` reads what is free at another moment."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a rank says of itself.

    Attributes
    ----------
    ceiling
        Bytes that it may hold.
    alike
        What must be the same on all ranks: versions, settings, the data.
    """

    ceiling: int
    alike: Mapping[str, Any]


class Meeting:
    """The ranks of a training, before they are a group.

    Parameters
    ----------
    world
        This rank.

    Raises
    ------
    LostRank
        The launcher's store cannot be reached.
    """

    def __init__(self, world: World) -> None:
        from torch.distributed.rendezvous import rendezvous

        self.world = world
        with watched():
            found = rendezvous("env://", world.rank, world.size, timeout=timedelta(seconds=PLANNING_SECONDS))
            self._store: Any = next(iter(found))[0]

    def arrive(self, arrival: Arrival) -> list[Arrival]:
        """Say what this rank is; the leader waits for all ranks and returns what they said, in their order."""
        said = {"ceiling": arrival.ceiling, "alike": versions() | dict(arrival.alike)}
        self._put(f"rank/{self.world.rank}", said)
        if not self.world.leads:
            return []
        every = [self._get(f"rank/{rank}", PATIENCE_SECONDS) for rank in range(self.world.size)]
        return [Arrival(int(one["ceiling"]), one["alike"]) for one in every]

    def publish(self, word: Mapping[str, Any]) -> None:
        """Say the leader's word to all others."""
        self._put("leader", word)

    def word(self) -> dict[str, Any]:
        """Wait for the leader's word."""
        word: dict[str, Any] = self._get("leader", PLANNING_SECONDS)
        return word

    def group(self) -> Group:
        """Connect all ranks with each other."""
        import torch.distributed as dist

        with watched():
            dist.init_process_group(
                "gloo",
                store=self._store,
                rank=self.world.rank,
                world_size=self.world.size,
                timeout=timedelta(seconds=PATIENCE_SECONDS),
            )
        return Group(self.world)

    def _put(self, name: str, value: Mapping[str, Any]) -> None:
        with watched():
            self._store.set(f"peakline/{name}", json.dumps(value))

    def _get(self, name: str, seconds: float) -> Any:
        key, until = f"peakline/{name}", time.monotonic() + seconds
        with watched():
            while not self._store.check([key]):
                if time.monotonic() > until:
                    raise LostRank(f"no word of {name.replace('/', ' ')} in {seconds:.0f} s")
                time.sleep(LOOK_SECONDS)
            return json.loads(self._store.get(key))


def versions() -> dict[str, str]:
    """Return the versions that must be the same on all ranks."""
    import torch

    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"peakline": __version__, "torch": str(torch.__version__), "python": python}


def check_alike(arrivals: list[Arrival]) -> None:
    """Refuse ranks that would not compute the same training.

    Parameters
    ----------
    arrivals
        Of all ranks, the leader's first.

    Raises
    ------
    UsageError
        Two ranks have other versions, settings or data; the message says which rank and what.
    """
    leader = arrivals[0].alike
    for rank, arrival in enumerate(arrivals):
        if names := differing(leader, arrival.alike):
            told = "; ".join(f"{name} {arrival.alike.get(name)} and not {leader.get(name)}" for name in names[:2])
            raise UsageError(f"rank {rank} of {len(arrivals)} is not like rank 0: {told}")


def smallest_ceiling(arrivals: list[Arrival]) -> tuple[int, str]:
    """Return the ceiling under which all ranks plan, and a line to say if it is not the leader's own."""
    least = min(range(len(arrivals)), key=lambda rank: arrivals[rank].ceiling)
    ceiling, own = arrivals[least].ceiling, arrivals[0].ceiling
    if ceiling >= SAME * own:
        return ceiling, ""
    from common.memory.process.budget import format_size

    return ceiling, f"rank {least} has the smallest ceiling, {format_size(ceiling)}: all ranks keep below that"
