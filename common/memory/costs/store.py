"""Cache of measured costs; what is missing is measured in a child process.

The child (``common.memory.costs.probe_child``) has walls of its own, so that measuring does not exceed the ceiling. A
probe's argument ``warm_up`` names the function that it runs first (``common.memory.costs.baseline``).
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import EXIT_DOES_NOT_FIT, EXIT_UNFORESEEN, BadInput, UsageError
from common.memory.costs.probes import IN_CHILD, Costs, Probe, ProbeFailed, resolve
from common.memory.process import child, glibc, guard, supervisor
from common.memory.process.budget import format_size
from common.memory.process.meter import anonymous

LONGEST_SECONDS = 600
"""Time limit of one probe."""

CHILD = "common.memory.costs.probe_child"
"""The module that measures."""
MOST = 1 << 50
"""The largest cost that is believed, in bytes or seconds."""
NUMBERS = {"costs", "needs"}
"""Keys of an answer with results, or with the probes whose results are needed first."""
ANSWERS = NUMBERS | {"unavailable", "usage", "input"}
"""The same, and keys of an answer with the reason why there are no results."""


_unwritten: dict[tuple[Path, Probe], Mapping[str, float]] = {}
"""What this process measured and could not write into the cache, by its directory."""


def cache_directory() -> Path:
    """Return ``$XDG_CACHE_HOME/peakline/costs``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "peakline" / "costs"


class CostStore:
    """Results of probes: reads them from the cache, and measures what is missing.

    Parameters
    ----------
    directory
        The cache; ``None`` for the user's.
    walled
        True if nothing may be measured outside the walls, not even for a refusal, because the command is running.
    measures
        False if nothing may be measured at all, because the memory of this process leaves no room for a child.
    """

    def __init__(self, directory: Path | None = None, *, walled: bool = False, measures: bool = True) -> None:
        self.directory = directory if directory is not None else cache_directory()
        self.walled, self.measures = walled, measures
        self.measured = 0
        """Number of probes run within the ceiling, with or without a result; their memory counts as the command's."""
        self.exceeded = False
        """True once a probe was measured outside the walls."""
        self.baselines: dict[object, tuple[Probe, int]] = {}
        """By warm-up, the probe of the baseline, and the bytes of files that its process mapped."""
        self._failures: dict[Probe, str] = {}

    def cached(self, probes: Iterable[Probe]) -> dict[Probe, Mapping[str, float]]:
        """Return the results that are in the cache."""
        return {probe: costs for probe in dict.fromkeys(probes) if (costs := self._read(probe)) is not None}

    def collect(self, probes: Iterable[Probe], *, ceiling: int | None) -> Costs:
        """Return the results of all probes, measuring those that are missing.

        Parameters
        ----------
        ceiling
            Bytes for this process and the child together; ``None`` to measure outside the walls, which only a refusal
            may do, in order to name a ceiling that is enough.

        Raises
        ------
        ProbeFailed
            If a probe ran out of memory or time, or measures what this machine does not have.
        UsageError, BadInput
            If a probe raised it.
        ChildFailed
            If the child failed in another way: an exception, a signal, an exit code.
        """
        wanted = list(dict.fromkeys(probes))
        have = self.cached(wanted)
        missing = [probe for probe in wanted if probe not in have]
        if ceiling is not None:
            for probe in missing:
                if probe not in self._failures and self._tried(probe) >= ceiling:
                    under = f"under {format_size(ceiling)} (tried by an earlier command)"
                    self._failures[probe] = f"cannot be measured {under}"
                if probe in self._failures:
                    raise ProbeFailed(self._failures[probe])
        if missing and not self.measures:
            raise ProbeFailed("its memory could not be measured before the command began")
        if missing and ceiling is None:
            if self.walled:
                raise ProbeFailed(self._failures.get(missing[0], "it can only be measured outside the walls"))
            self.exceeded = True
            child.tell_supervisor(supervisor.UNWALLED)
        for group in _grouped(missing):
            for probe, costs in self._results(group, ceiling):
                have[probe] = costs
                self._write(probe, costs)
        for probe, costs in have.items():
            if "files" in costs:
                self.baselines[probe.warm_up] = probe, int(costs["files"])
        return have

    def correct(self, probe: Probe, more: int) -> None:
        """Add to all that was measured, for the next command."""
        if costs := self._read(probe):
            self._write(probe, {name: size + more for name, size in costs.items()})

    def _read(self, probe: Probe) -> Mapping[str, float] | None:
        if (kept := _unwritten.get((self.directory, probe))) is not None:
            return kept
        costs: Mapping[str, float] | None = self._entry(probe, "json", "costs")
        return costs if plausible(costs) and costs and any(costs.values()) else None

    def _write(self, probe: Probe, costs: Mapping[str, float]) -> None:
        try:
            self._write_entry(probe, "json", "costs", costs)
        except OSError:
            _unwritten[self.directory, probe] = costs  # a read-only cache costs time, not correctness

    def _tried(self, probe: Probe) -> int:
        """The largest ceiling under which an earlier command could not measure it; 0 if there is none."""
        ceiling = self._entry(probe, "tried", "ceiling")
        return ceiling if type(ceiling) is int else 0

    def _entry(self, probe: Probe, suffix: str, name: str) -> Any:
        """What a file of the cache has under ``name``; ``None`` if there is no whole one."""
        try:
            entry = json.loads((self.directory / f"{probe.key}.{suffix}").read_text())
            return entry[name] if entry["check"] == checksum(probe, entry[name]) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _write_entry(self, probe: Probe, suffix: str, name: str, value: Any) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        part = self.directory / f".{probe.key}.{os.getpid()}"
        entry = {"function": probe.function, "arguments": probe.arguments, name: value}
        part.write_text(json.dumps(entry | {"check": checksum(probe, value)}))
        part.replace(self.directory / f"{probe.key}.{suffix}")

    def _results(self, probes: Sequence[Probe], ceiling: int | None) -> Iterator[tuple[Probe, Mapping[str, float]]]:
        """Yield the results of probes that share a warm-up, those of deferred probes last."""
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
        """Measure what deferred probes need, then compute their results."""
        needs = {probe: [_probe(each) for each in answer["needs"]] for probe, answer in waiting.items()}
        results: dict[Probe, Mapping[str, float]] = {}
        try:
            for group in _grouped(dict.fromkeys(each for some in needs.values() for each in some)):
                results |= {probe: answer["costs"] for probe, answer in self._measure(group, ceiling)}
        except ProbeFailed as failure:
            self._failures |= dict.fromkeys(waiting, str(failure))
            raise
        for probe, answer in waiting.items():
            yield probe, resolve(answer["finish"])(answer["state"], [results[each] for each in needs[probe]])

    def _measure(self, probes: Sequence[Probe], ceiling: int | None) -> Iterator[tuple[Probe, Mapping[str, Any]]]:
        """Run probes that share a warm-up in one child, one after the other.

        Yields each with its answer: ``costs``, or what it ``needs`` (``DeferredProbe.to_json``).
        """
        done = child.run_module(
            CHILD,
            stdin=json.dumps([(probe.function, probe.arguments) for probe in probes]).encode(),
            ceiling=None if ceiling is None else ceiling - anonymous() - guard.SUPERVISOR_BYTES,
            cgroup=True,
            variables=glibc.environment(probes[0].threads) | {IN_CHILD: "1"},
            timeout=LONGEST_SECONDS * len(probes),
        )
        answers = [line for line in _json_lines(done.stdout.decode("utf-8", "replace")) if ANSWERS & line.keys()]
        numbers = [answer for answer in answers if NUMBERS & answer.keys()]
        self.measured += max(1, len(numbers)) * (ceiling is not None)
        yield from zip(probes, numbers, strict=False)
        if len(numbers) < len(probes):
            refused = answers[len(numbers)] if len(answers) > len(numbers) else {}
            raise self._failure(probes[len(numbers)], ceiling, done, refused)

    def _failure(
        self, probe: Probe, ceiling: int | None, done: child.Finished, refused: Mapping[str, str]
    ) -> Exception:
        """Return the exception for a probe without results: ``ProbeFailed`` for lack of memory, time or support."""
        name = probe.function.rsplit(":", 1)[-1]
        if "usage" in refused:
            return UsageError(refused["usage"])
        if "input" in refused:
            return BadInput(refused["input"], public=refused["public"])
        if "unavailable" in refused:
            why = refused["unavailable"]
        elif done.exit.timed_out:
            why = f"took longer than {LONGEST_SECONDS} s"
        elif done.exit.out_of_memory:
            if ceiling is not None and ceiling > self._tried(probe):
                with suppress(OSError):
                    self._write_entry(probe, "tried", "ceiling", ceiling)
            why = done.last_line if done.exit.status == EXIT_DOES_NOT_FIT else "it needs more"
        else:
            why = done.last_line if done.exit.status == EXIT_UNFORESEEN else str(done.exit)
            return child.ChildFailed(f"a cost could not be measured ({name}: {why})")
        under = "outside the walls" if ceiling is None else f"under {format_size(ceiling)}"
        self._failures[probe] = f"cannot be measured {under} ({name}: {why})"
        return ProbeFailed(self._failures[probe])


def plausible(costs: Any) -> bool:
    """True if costs are what a measurement can be: numbers by name, none negative, infinite or beyond ``MOST``."""
    return (
        isinstance(costs, dict)
        and bool(costs)
        and all(type(cost) in (int, float) and 0 <= cost <= MOST for cost in costs.values())
    )


def checksum(probe: Probe, costs: Any) -> str:
    """Checksum of an entry of the cache, by which damage is noticed."""
    return hashlib.sha256(json.dumps([probe.function, probe.arguments, costs]).encode()).hexdigest()[:16]


def _grouped(probes: Iterable[Probe]) -> list[list[Probe]]:
    """Group probes with the same warm-up and thread count; probes without a warm-up stay alone."""
    groups: dict[object, list[Probe]] = {}
    for probe in probes:
        groups.setdefault((probe.warm_up, probe.threads) if probe.warm_up else probe, []).append(probe)
    return list(groups.values())


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    """Yield the lines that are JSON objects; libraries may have written others."""
    for line in text.splitlines():
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


def _probe(fields: Mapping[str, Any]) -> Probe:
    """Make a probe from its JSON."""
    return Probe(**{**fields, "libraries": tuple(fields["libraries"])})
