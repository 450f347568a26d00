"""How ranks find each other, and what they agree on before any of them trains.

The leader plans alone, without PyTorch and before it loads anything, as a command that trains by itself does. The other
ranks load their libraries meanwhile and wait. Words go through the launcher's store, as JSON; only then is the group of
processes made. So a plan that does not fit is refused before anything large is loaded by the leader.
"""

import json
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from common import __version__
from common.errors import UsageError
from common.training.distributed.connections import watched_connections
from common.training.distributed.group import PATIENCE_SECONDS, Group, LostRank, watched
from common.training.distributed.world import World
from common.training.resume import differing

PLANNING_SECONDS = 3600
"""For how long a rank waits for the leader, which may have to measure what a step takes."""
LOOK_SECONDS = 0.05
"""Between two looks into the store."""
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

    The store may have words of ranks that the launcher has started before. So the leader's words have a name that is
    new each time, and the leader repeats the marks of the ranks that it has heard: a rank believes no other word.

    Parameters
    ----------
    world
        This rank.
    store
        Where words are left; ``None``: the launcher's.

    Raises
    ------
    LostRank
        The launcher's store cannot be reached.
    """

    def __init__(self, world: World, store: Any = None) -> None:
        self.world = world
        self._mark = uuid.uuid4().hex
        self._name = self._mark if world.leads else ""
        """Name of the leader's words."""
        self._heard: list[str] = []
        self._store = store if store is not None else _launchers_store(world)

    def gather(self, arrival: Arrival) -> list[Arrival]:
        """Wait for all ranks, as the leader; returns what they say, in their order, beginning with ``arrival``."""
        with watched():
            self._store.set(_LEADER, self._name)
            arrivals = [Arrival(arrival.ceiling, versions() | dict(arrival.alike))]
            until = time.monotonic() + PATIENCE_SECONDS
            for rank in range(1, self.world.size):
                key = f"{_LEADER}/{self._name}/{rank}"
                while not self._store.check([key]):
                    _pause(until, f"rank {rank} has not come in {PATIENCE_SECONDS:.0f} s")
                said = json.loads(self._store.get(key))
                self._heard.append(said["mark"])
                arrivals.append(Arrival(int(said["ceiling"]), said["alike"]))
        return arrivals

    def publish(self, word: Mapping[str, Any]) -> None:
        """Say the leader's word to all others."""
        with watched():
            self._store.set(f"{_LEADER}/{self._name}/word", json.dumps({"heard": self._heard, "word": word}))

    def word(self, arrival: Arrival) -> dict[str, Any]:
        """Say what this rank is, and wait for the leader's word."""
        said = {"mark": self._mark, "ceiling": arrival.ceiling, "alike": versions() | dict(arrival.alike)}
        until = time.monotonic() + PLANNING_SECONDS
        with watched():
            while True:
                if self._store.check([_LEADER]) and (name := self._store.get(_LEADER).decode()) != self._name:
                    self._name = name
                    self._store.set(f"{_LEADER}/{name}/{self.world.rank}", json.dumps(said))
                if self._name and self._store.check([key := f"{_LEADER}/{self._name}/word"]):
                    answer = json.loads(self._store.get(key))
                    if self._mark in answer["heard"]:
                        word: dict[str, Any] = answer["word"]
                        return word
                _pause(until, f"rank 0 has not planned in {PLANNING_SECONDS:.0f} s")

    def group(self) -> Group:
        """Connect all ranks with each other."""
        import torch.distributed as dist
        from torch._C._distributed_c10d import PrefixStore

        with watched(), watched_connections():
            dist.init_process_group(
                "gloo",
                store=PrefixStore(f"{_LEADER}/{self._name}", self._store),
                rank=self.world.rank,
                world_size=self.world.size,
                timeout=timedelta(seconds=PATIENCE_SECONDS),
            )
        return Group(self.world)


_LEADER = "peakline"
"""Key of the name of the leader's words, and beginning of all keys."""


def _launchers_store(world: World) -> Any:
    from torch.distributed.rendezvous import rendezvous

    with watched():
        found = rendezvous("env://", world.rank, world.size, timeout=timedelta(seconds=PLANNING_SECONDS))
        return next(iter(found))[0]


def _pause(until: float, late: str) -> None:
    """Wait a moment; raises ``LostRank`` after ``until``. Waiting in the store's own code could not be interrupted."""
    if time.monotonic() > until:
        raise LostRank(late)
    time.sleep(LOOK_SECONDS)


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
