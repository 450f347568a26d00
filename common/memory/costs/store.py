"""Costs that only a measurement can give, each taken once in a child process and cached.

The child (``common.memory.costs.probe_child``) has walls of its own, so that measuring never exceeds the ceiling
either; a probe's argument ``warm_up`` names what it loads first (``common.memory.costs.baseline``).
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import EXIT_DOES_NOT_FIT, EXIT_UNFORESEEN, UsageError
from common.memory.costs.probes import IN_CHILD, Costs, Probe, ProbeFailed, resolve
from common.memory.process import child, glibc, guard
from common.memory.process.budget import format_size
from common.memory.process.meter import anonymous

LONGEST_SECONDS = 600
"""A probe that takes longer than this has gone wrong."""

CHILD = "common.memory.costs.probe_child"
"""The module that measures."""
NUMBERS = {"costs", "needs"}
"""Keys of a child's answer: a probe's numbers, or the probes whose numbers it needs first."""
ANSWERS = NUMBERS | {"unavailable", "usage"}
"""The same, and why there are none."""


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

    def collect(self, probes: Iterable[Probe], *, ceiling: int | None) -> Costs:
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

        Yields each with its ``costs``, or with what it ``needs`` (``DeferredProbe.to_json``).
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
        self.measured += len(numbers) * (ceiling is not None)
        yield from zip(probes, numbers, strict=False)
        if len(numbers) < len(probes):
            refused = answers[len(numbers)] if len(answers) > len(numbers) else {}
            raise self._failure(probes[len(numbers)], ceiling, done, refused)

    def _failure(
        self, probe: Probe, ceiling: int | None, done: child.Finished, refused: Mapping[str, str]
    ) -> Exception:
        """What to raise for the first probe without numbers: only memory, time and ``NotAvailable`` are foreseen."""
        name = probe.function.rsplit(":", 1)[-1]
        if "usage" in refused:
            return UsageError(refused["usage"])
        if "unavailable" in refused:
            why = refused["unavailable"]
        elif done.exit.timed_out:
            why = f"not done after {LONGEST_SECONDS} s each"
        elif done.exit.out_of_memory:
            why = done.last_line if done.exit.status == EXIT_DOES_NOT_FIT else "it needs more"
        else:
            why = done.last_line if done.exit.status == EXIT_UNFORESEEN else str(done.exit)
            return child.ChildFailed(f"a cost could not be measured ({name}: {why})")
        under = "without a wall" if ceiling is None else f"under {format_size(ceiling)}"
        self._failures[probe] = f"cannot be measured {under} ({name}: {why})"
        return ProbeFailed(self._failures[probe])


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


def _probe(fields: Mapping[str, Any]) -> Probe:
    """From its JSON."""
    return Probe(**{**fields, "libraries": tuple(fields["libraries"])})
