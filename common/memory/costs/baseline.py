"""The baseline: what a process holds once its libraries are loaded and have run once, before any data.

Imports are the smaller part of it: first use loads code lazily, starts thread pools and fills kernel caches. So the
baseline is measured by a warm-up function that imports what a command needs and runs each library on something tiny;
the command calls the same function before its soft wall is set.
"""

from collections.abc import Sequence

from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Term
from common.memory.process import glibc, guard
from common.memory.process.meter import lifetime_peak, resident

MEASURE = "common.memory.costs.baseline:measure"
START = "start"
"""The phase in which a command warms up."""


def measure(warm_up: str) -> dict[str, float]:
    """Read this process, which has run ``warm_up`` and nothing else: a probe's child.

    Returns
    -------
    dict
        ``bytes`` resident now, and ``peak``, what the warm-up itself took.
    """
    glibc.trim()
    return {"bytes": resident(), "peak": lifetime_peak()}


def probe(warm_up: str, *, libraries: Sequence[str], threads: int) -> Probe:
    """The probe that measures the baseline of one warm-up function."""
    return Probe.of(MEASURE, libraries=libraries, threads=threads, warm_up=warm_up)


SPREAD_BYTES = 512 << 10
"""Floors differ from start to start, by where things come to lie and which pages are huge; measured up to 1.2 MiB, of
which the reserve covers the rest."""


def terms(costs: Costs, baseline: Probe) -> tuple[Term, ...]:
    """What every command's footprint starts with."""
    resting = int(costs[baseline]["bytes"])
    loading = int(costs[baseline].get("peak", resting)) - resting
    return (
        Term("interpreter and libraries", resting + SPREAD_BYTES, "measured"),
        Term("supervisor", guard.SUPERVISOR_BYTES, "measured"),
        Term("warming up", loading, "measured", (START,)),
    )
