"""Requests for measurements and their failures, which ``store`` and ``probe_child`` share.

A ``Probe`` names a function ``module:function`` of peakline and its JSON arguments; the function returns numbers
by name. The cache key is a hash of the probe, the source of its module, library versions, CPU flags and their limits,
and the thread count.
"""

import hashlib
import importlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.memory.costs import cpu
from common.memory.process import glibc


@dataclass(frozen=True, slots=True)
class Probe:
    """One measurement."""

    function: str
    """``"package.module:function"`` of peakline; it returns ``dict[str, int | float]``."""
    arguments: str = "{}"
    """Its keyword arguments as a JSON object with sorted keys (``Probe.of`` writes it)."""
    libraries: tuple[str, ...] = ()
    """Distributions whose versions the result depends on."""
    threads: int = 1
    """Thread count of the measurement."""

    @classmethod
    def of(cls, function: str, *, libraries: Sequence[str] = (), threads: int = 1, **arguments: Any) -> "Probe":
        """Make a probe from plain values.

        Examples
        --------
        >>> Probe.of("common.memory.costs.baseline:measure", warm_up="apps.recsys.warm_up:reading").arguments
        '{"warm_up": "apps.recsys.warm_up:reading"}'
        """
        return cls(function, json.dumps(arguments, sort_keys=True), tuple(libraries), threads)

    @property
    def warm_up(self) -> str | None:
        """The function that its child runs first, if any."""
        name: str | None = json.loads(self.arguments).get("warm_up")
        return name

    @property
    def key(self) -> str:
        """Key in the cache, 32 hexadecimal digits."""
        code = [_source(name.split(":")[0]) for name in (self.function, self.warm_up or self.function)]
        facts = [self.function, self.arguments, self.threads, *code, *environment_facts(self.libraries)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


CODE_VERSION = 6
"""Increase it if a change outside the modules of a probe and its warm-up changes what is measured."""

Costs = Mapping[Probe, Mapping[str, float]]
"""Results by probe and name: bytes, which are whole numbers, or seconds."""


class ProbeFailed(Exception):
    """A cost could not be measured under the ceiling; the message says why."""


class NotAvailable(Exception):
    """Raised by a probe in its child: this machine does not have what it measures; the message says why."""


class DeferredProbe(Exception):
    """Raised by a probe in its child: it needs the results of other probes, whose children need less memory.

    Parameters
    ----------
    probes
        The other probes.
    finish
        ``"module:function"``, called with ``state`` and the results of ``probes`` in order; it computes the result
        without measuring again.
    state
        JSON-compatible values of this probe.
    """

    def __init__(self, probes: Sequence[Probe], finish: str, state: Mapping[str, Any]) -> None:
        self.probes, self.finish, self.state = tuple(probes), finish, state
        super().__init__(f"{len(self.probes)} other measurements are needed")

    def to_json(self) -> dict[str, Any]:
        """The child's answer as JSON."""
        return {"needs": [asdict(probe) for probe in self.probes], "finish": self.finish, "state": self.state}


IN_CHILD = "PEAKLINE_PROBE"
"""Environment variable that is set where a probe may raise ``DeferredProbe``."""


@cache
def _version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # 13 ms, which the supervising process does not need

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


@cache
def _source(module: str) -> str:
    """Hash a module's source without running it: a changed warm-up has another baseline."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return "absent"
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]


def environment_facts(libraries: Iterable[str]) -> list[str | int]:
    """Return what every measurement depends on: CPU and its limits, Python, allocator, and library versions."""
    versions = [f"{name}={_version(name)}" for name in libraries]
    return [*cpu.facts(), platform.python_version(), CODE_VERSION, os.environ.get(glibc.TUNABLES, ""), *versions]


def resolve(name: str) -> Callable[..., Any]:
    """Import ``"module:function"``, which must be of peakline.

    Raises
    ------
    SystemExit
        If it is not.
    """
    module, function = name.split(":")
    if module.split(".")[0] not in ("common", "apps"):
        raise SystemExit(f"{name}: probes are functions of peakline")
    imported: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return imported
