"""The baseline: resident memory of a process after its warm-up, before it reads any data.

A warm-up imports the libraries of a command and runs each once on a tiny input, because first use loads code, starts
thread pools and fills kernel caches: imports alone miss a tenth to a half of the baseline. A child measures it; the
command runs the same warm-up before its soft wall is set.
"""

from collections.abc import Sequence

from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Term
from common.memory.process import glibc, guard
from common.memory.process.meter import file_bytes, lifetime_peak, resident

MEASURE = "common.memory.costs.baseline:measure"
START = "start"
"""Phase of the warm-up."""


def measure(warm_up: str) -> dict[str, float]:
    """Measure this process, a probe's child that has run ``warm_up`` and nothing else.

    Returns
    -------
    dict
        ``bytes``: resident after the warm-up; ``files``: those of them that files back; ``peak``: resident at most
        during it.
    """
    glibc.trim()
    return {"bytes": resident(), "files": file_bytes(), "peak": lifetime_peak()}


def probe(warm_up: str, *, libraries: Sequence[str], threads: int) -> Probe:
    """Return the probe of the baseline after ``warm_up`` (``"module:function"``)."""
    return Probe.of(MEASURE, libraries=libraries, threads=threads, warm_up=warm_up)


SPREAD_BYTES = 512 << 10
"""Allowance for differences between starts, which come from addresses and huge pages. Up to 1.2 MiB were measured; the
reserve covers the rest."""


def terms(costs: Costs, baseline: Probe) -> tuple[Term, ...]:
    """Return the first terms of every command's footprint: baseline, supervisor and warm-up.

    Parameters
    ----------
    costs
        With the answer to ``baseline``.
    baseline
        As ``probe`` makes it.
    """
    resting = int(costs[baseline]["bytes"])
    loading = int(costs[baseline].get("peak", resting)) - resting
    return (
        Term("interpreter and libraries", resting + SPREAD_BYTES, "measured"),
        Term("supervisor", guard.SUPERVISOR_BYTES, "measured"),
        Term("warming up", loading, "measured", (START,)),
    )
