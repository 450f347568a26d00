"""Costs that only a measurement can give, each taken once in a child process and cached.

A ``Probe`` names a function ``module:function`` of this suite and its JSON arguments; the function returns numbers
by name. The cache's key is the probe, the text of its module, the library versions it depends on, the CPU's flags and
the thread count.
The child is walled (``RLIMIT_DATA``, and a cgroup of its own) and patrolled, so that measuring never exceeds the
ceiling either; an argument ``warm_up`` names what it loads first (``common.memory.costs.floor``).
"""

import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.memory.process import glibc, guard
from common.memory.process.budget import MIB, format_size, total_memory
from common.memory.process.meter import anonymous, resident


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

NO_WALL = "no wall"
"""What a child is told instead of a ceiling."""
RESERVED = 512 * MIB
"""What a probe may reserve beyond its ceiling: engines reserve much that they hardly touch, and the patrol looks at
what is touched."""
FENCE_MARGIN = 8 * MIB
"""What page tables and a process that is being killed may hold beyond its cgroup's limit, and its parent of files that
it does not map (measured up to 7 MiB together)."""
LONGEST_SECONDS = 600
"""A probe that takes longer than this has gone wrong."""

Costs = Mapping[Probe, Mapping[str, float]]
"""Probe -> its numbers. Bytes are whole numbers; seconds may have a fraction."""


class ProbeFailed(Exception):
    """A cost could not be measured under the ceiling; the message says why."""


class Needs(Exception):
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
"""Environment variable by which a probe knows that it may raise ``Needs``."""


@cache
def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


@cache
def _cpu() -> str:
    """The CPU's feature flags: kernels, and with them workspaces, are chosen by these."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return hashlib.sha256(line.encode()).hexdigest()[:16]
    except OSError:
        pass
    return platform.machine()


@cache
def _source(module: str) -> str:
    """A module's text, which is not executed for that: another warm-up has another floor."""
    found = find_spec(module)
    if found is None or found.origin is None:
        return "absent"
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()[:16]


def environment_facts(libraries: Iterable[str]) -> list[str | int]:
    """What a measurement depends on beside what is measured: CPU, allocator and the versions of everything."""
    versions = [f"{name}={_version(name)}" for name in libraries]
    return [_cpu(), platform.python_version(), CODE_VERSION, os.environ.get(glibc.TUNABLES, ""), *versions]


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/peakline/costs``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "peakline" / "costs"


class CostStore:
    """Looks costs up, and measures what is missing."""

    def __init__(self, directory: Path | None = None, *, walled: bool = False) -> None:
        self.directory = directory if directory is not None else cache_directory()
        self.walled = walled
        """Whether nothing may leave the walls, not even for a refusal: the command is running already."""
        self.measured = 0
        """Probes measured behind the wall so far; their memory is this command's too."""
        self.exceeded = False
        """Whether one was measured outside it."""
        self._failures: dict[Probe, str] = {}

    def cached(self, probes: Iterable[Probe]) -> dict[Probe, Mapping[str, float]]:
        """Of these, what is known already."""
        return {probe: costs for probe in dict.fromkeys(probes) if (costs := self._read(probe)) is not None}

    def known(self, probes: Iterable[Probe], *, ceiling: int | None) -> Costs:
        """All of these, measuring what is missing.

        Parameters
        ----------
        ceiling
            Bytes for this process and the child together; ``None``: the child leaves the walls, which only a refusal
            may do, to name the ceiling that would have been enough.

        Raises
        ------
        ProbeFailed
            If one could not be measured.
        """
        wanted = list(dict.fromkeys(probes))
        have = self.cached(wanted)
        missing = [probe for probe in wanted if probe not in have]
        for probe in missing:
            if probe in self._failures and ceiling is not None:
                raise ProbeFailed(self._failures[probe])
        if missing and ceiling is None:
            if self.walled:
                raise ProbeFailed(self._failures.get(missing[0], "would have to be measured without a wall"))
            self.exceeded = True
        for group in _alike(missing):
            for probe, costs in self._answered(group, ceiling):
                have[probe] = costs
                self._write(probe, costs)
        return have

    def _read(self, probe: Probe) -> Mapping[str, float] | None:
        try:
            costs: dict[str, float] = json.loads((self.directory / f"{probe.key}.json").read_text())["costs"]
        except (OSError, ValueError, KeyError):
            return None
        return costs

    def _write(self, probe: Probe, costs: Mapping[str, float]) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            part = self.directory / f".{probe.key}.{os.getpid()}"
            part.write_text(json.dumps({"function": probe.function, "arguments": probe.arguments, "costs": costs}))
            part.replace(self.directory / f"{probe.key}.json")
        except OSError:
            pass  # a read-only cache costs time, not correctness

    def _answered(self, probes: Sequence[Probe], ceiling: int | None) -> Iterator[tuple[Probe, Mapping[str, float]]]:
        """The numbers of probes that are alike: at once, or when what they need of others is known."""
        waiting: dict[Probe, Mapping[str, Any]] = {}
        for probe, answer in self._measure(probes, ceiling):
            if "costs" in answer:
                yield probe, answer["costs"]
            else:
                waiting[probe] = answer
        yield from self._finish(waiting, ceiling)

    def _finish(
        self, waiting: Mapping[Probe, Mapping[str, Any]], ceiling: int | None
    ) -> Iterator[tuple[Probe, Mapping[str, float]]]:
        """Measure what these need of others, then let them make their answers."""
        needs = {probe: [_probe(each) for each in answer["needs"]] for probe, answer in waiting.items()}
        found: dict[Probe, Mapping[str, float]] = {}
        try:
            for group in _alike(dict.fromkeys(each for some in needs.values() for each in some)):
                found |= {probe: answer["costs"] for probe, answer in self._measure(group, ceiling)}
        except ProbeFailed as failure:
            self._failures |= dict.fromkeys(waiting, str(failure))
            raise
        for probe, answer in waiting.items():
            yield probe, resolve(answer["finish"])(answer["state"], [found[each] for each in needs[probe]])

    def _measure(self, probes: Sequence[Probe], ceiling: int | None) -> Iterator[tuple[Probe, Mapping[str, Any]]]:
        """Measure probes that are alike, one after the other in one child, which warms up once.

        Yields each with its ``costs``, or with what it ``needs`` (``Needs.to_json``).
        """
        environment = os.environ | glibc.environment(probes[0].threads) | {IN_CHILD: "1"}
        wall = NO_WALL if ceiling is None else str(max(0, ceiling - anonymous()))
        fence = guard.hard_wall(total_memory()) if ceiling is not None else None
        work = json.dumps([(probe.function, probe.arguments) for probe in probes])
        with subprocess.Popen(
            [sys.executable, "-m", "common.memory.costs.store", wall, str(fence or "")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            try:
                out, err = child.communicate(work, timeout=LONGEST_SECONDS * len(probes))
            except subprocess.TimeoutExpired:
                child.kill()
                out, err = "", f"not done after {LONGEST_SECONDS * len(probes)} s"
        stopped = guard.take_down(fence)
        answers = [line for line in _json_lines(out) if "costs" in line or "needs" in line]
        self.measured += len(answers) * (ceiling is not None)
        yield from zip(probes, answers, strict=False)
        if len(answers) < len(probes):
            failed = probes[len(answers)]
            lines = [line for line in err.strip().splitlines() if line.strip()]
            why = lines[-1] if lines else f"killed by signal {-(child.returncode or 0)}"
            why = "it needs more" if stopped else why
            name = failed.function.rsplit(":", 1)[-1]
            under = "without a wall" if ceiling is None else f"under {format_size(ceiling)}"
            self._failures[failed] = f"cannot be measured {under} ({name}: {why})"
            raise ProbeFailed(self._failures[failed])


def _alike(probes: Iterable[Probe]) -> list[list[Probe]]:
    """Probes that warm up in the same way and use as many threads, together; those that do not warm up, alone."""
    groups: dict[object, list[Probe]] = {}
    for probe in probes:
        groups.setdefault((probe.warm_up, probe.threads) if probe.warm_up else probe, []).append(probe)
    return list(groups.values())


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    """The lines that are JSON objects; libraries may have written others."""
    for line in text.splitlines():
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


def resolve(name: str) -> Callable[..., Any]:
    """The function ``"module:function"``, of this suite only."""
    module, function = name.split(":")
    if module.split(".")[0] not in ("common", "apps"):
        raise SystemExit(f"{name}: probes are functions of this suite")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _probe(fields: Mapping[str, Any]) -> Probe:
    """From its JSON."""
    return Probe(**{**fields, "libraries": tuple(fields["libraries"])})


def _child(ceiling: str, fence: str) -> None:
    """Run the probes given on stdin in this process, and write each answer as a line on stdout."""
    from common.memory.costs import floor
    from common.memory.costs import store as costs  # this module is __main__ here, and its exceptions are others

    glibc.tame()
    work = [(function, json.loads(arguments)) for function, arguments in json.load(sys.stdin)]
    # As in the command itself, libraries load before the wall stands: what they reserve at first use is not data.
    guard.lift_soft_wall()
    if ceiling == NO_WALL:
        guard.leave_hard_wall()
    else:
        wall = int(ceiling) - floor.SUPERVISOR_BYTES
        guard.patrol(wall, margin=FENCE_MARGIN if fence else guard.PATROL_MARGIN)
    if warm_up := work[0][1].get("warm_up"):
        resolve(warm_up)()
    if ceiling != NO_WALL:
        guard.soft_wall(wall, slack=RESERVED)
        room = wall - FENCE_MARGIN - resident()  # nothing of what it holds is charged to the fence
        if fence and guard.limit(Path(fence), max(0, room)):
            guard.enter(Path(fence))
    for function, arguments in work:
        try:
            answer = {"costs": resolve(function)(**arguments)}
        except costs.Needs as needs:
            answer = needs.to_json()
        sys.stdout.write("\n" + json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _child(*sys.argv[1:])
