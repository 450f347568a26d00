"""What a measurement is asked for and what it answers: the words that the store of costs and its child share.

A ``Probe`` names a function ``module:function`` of this suite and its JSON arguments; the function returns numbers
by name. Its key in the cache is made of the probe, the text of its module, the library versions it depends on, the
CPU's flags and their limits, and the thread count.
"""

import hashlib
import importlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.memory.costs import cpu
from common.memory.process import glibc


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing to be known."""

    function: str
    """``"package.module:function"``, one of ours; called with the arguments, returns ``dict[str, int | float]``."""
    arguments: str = "{}"
    """JSON object, keys sorted (``Probe.of`` writes it)."""
    libraries: tuple[str, ...] = ()
    """Distributions whose versions the answer depends on."""
    threads: int = 1
    """Thread count it is measured with."""

    @classmethod
    def of(cls, function: str, *, libraries: Sequence[str] = (), threads: int = 1, **arguments: Any) -> "Probe":
        """Build from plain values."""
        return cls(function, json.dumps(arguments, sort_keys=True), tuple(libraries), threads)

    @property
    def warm_up(self) -> str | None:
        """The function that its child runs first, if any."""
        found: str | None = json.loads(self.arguments).get("warm_up")
        return found

    @property
    def key(self) -> str:
        """Cache key."""
        code = [_source(name.split(":")[0]) for name in (self.function, self.warm_up or self.function)]
        facts = [self.function, self.arguments, self.threads, *code, *environment_facts(self.libraries)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


CODE_VERSION = 4
"""Raise when what a probe measures changes elsewhere than in its own and its warm-up's module, which are in the key."""

Costs = Mapping[Probe, Mapping[str, float]]
"""Probe -> its numbers. Bytes are whole numbers; seconds may have a fraction."""


class ProbeFailed(Exception):
    """A cost could not be measured under the ceiling; the message says why."""


class NotAvailable(Exception):
    """Raised by a probe in its child: what it would measure is not to be had on this machine; the message says why."""


class DeferredProbe(Exception):
    """Raised by a probe in its child: what others measure, in children that hold less than this one, is needed first.

    ``finish`` (``"module:function"``, called with ``state`` and the others' numbers in order) makes the answer then, by
    arithmetic alone: nothing is done twice.
    """

    def __init__(self, probes: Sequence[Probe], finish: str, state: Mapping[str, Any]) -> None:
        self.probes, self.finish, self.state = tuple(probes), finish, state
        super().__init__(f"{len(self.probes)} measurements of others")

    def to_json(self) -> dict[str, Any]:
        """What the child answers."""
        return {"needs": [asdict(probe) for probe in self.probes], "finish": self.finish, "state": self.state}


IN_CHILD = "PEAKLINE_PROBE"
"""Environment variable by which a probe knows that it may raise ``DeferredProbe``."""


@cache
def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


@cache
def _source(module: str) -> str:
    """A module's text, which is not executed for that: another warm-up has another baseline."""
    found = find_spec(module)
    if found is None or found.origin is None:
        return "absent"
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()[:16]


def environment_facts(libraries: Iterable[str]) -> list[str | int]:
    """What else a measurement depends on: the CPU and its limits, the allocator and the versions of everything."""
    versions = [f"{name}={_version(name)}" for name in libraries]
    return [*cpu.facts(), platform.python_version(), CODE_VERSION, os.environ.get(glibc.TUNABLES, ""), *versions]


def resolve(name: str) -> Callable[..., Any]:
    """The function ``"module:function"``, of this suite only."""
    module, function = name.split(":")
    if module.split(".")[0] not in ("common", "apps"):
        raise SystemExit(f"{name}: probes are functions of this suite")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
