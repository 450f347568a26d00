"""Memory that does not depend on the model: baselines of the commands, and of reading in a child process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apps.recsys.data.headers import is_arrow
from apps.recsys.data.readers import Source
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Term

READING = "apps.recsys.warm_up:reading"
TRAINING = "apps.recsys.warm_up:training"
LEARNING = "apps.recsys.warm_up:learning"
LEARNING_OVER_RANKS = "apps.recsys.warm_up:learning_over_ranks"
TRAINING_OVER_RANKS = "apps.recsys.warm_up:training_over_ranks"
TRACING = "apps.recsys.warm_up:tracing"
PAIRING = "apps.recsys.warm_up:pairing"
FILTERING = "apps.recsys.warm_up:filtering"
FILTERING_OVER_RANKS = "apps.recsys.warm_up:filtering_over_ranks"
SCORING = "apps.recsys.warm_up:scoring"
ANSWERING = "apps.recsys.warm_up:answering"
EXPORTING = "apps.recsys.warm_up:exporting"
SERVING = "apps.recsys.warm_up:serving"
FILTER_ANSWERING = "apps.recsys.warm_up:filter_answering"
FILTER_SERVING = "apps.recsys.warm_up:filter_serving"
"""Names of the warm-up functions, as ``common.memory.costs.baseline`` takes them."""
_FILTERED = {SCORING: FILTERING, ANSWERING: FILTER_ANSWERING, SERVING: FILTER_SERVING}
LIBRARIES = ("numpy", "scipy", "pyarrow", "implicit", "safetensors")
"""Libraries whose versions decide a baseline."""
WAITING_BYTES = 6 << 20
"""Memory of the parent while its fork reads: private pages, 7.0 to 7.6 MiB on four data sets, less pages of libraries
in the baseline that the fork does not touch. Reading 7 tables of all formats is then 1.025 to 1.050 of the measured."""
STAGE_BYTES = 12 << 20
"""Arrow's blocks while parsing: text, columns, dictionaries (for ``readers.BLOCK_BYTES``)."""
STAGED_ROW_BYTES = 64
"""Bytes per row while it is read, for files of so few rows that they do not fill Arrow's blocks."""
STAGE_LEAST_BYTES = 3 << 20
"""Arrow's first blocks, whatever is in them: a table of 300 rows ended 0.3 MiB above a ceiling without them (109.0 to
109.3 MiB in six runs); one of 200,000 rows had 5 MiB to spare."""


def reading_terms(rows: int, sources: Sequence[Source]) -> tuple[Term, Term]:
    """Terms of the phase ``plan`` for reading files: rows in Arrow's blocks; unpacking text, or Arrow's code.

    Parameters
    ----------
    rows
        Number of rows of all files.
    sources
        The files.
    """
    read, unpacking = 0, 0
    blocks = min(STAGE_BYTES, STAGE_LEAST_BYTES + STAGED_ROW_BYTES * rows)
    for source in sources:
        unpacking = max(unpacking, source.code_bytes)
        if not source.parquet:
            unpacking = max(unpacking, source.unpacking_bytes)
        elif is_arrow(source.path):
            read = max(read, source.unpacking_bytes)
        else:
            read = max(read, min(STAGE_BYTES, blocks + source.unpacking_bytes))
    return (
        Term("rows read", max(blocks, read), "measured", ("plan",)),
        Term("unpacking", unpacking, "measured", ("plan",)),
    )


def baseline_terms(costs: Costs, probe: Probe, *phases: str) -> list[Term]:
    """Terms of a baseline that holds in some phases only.

    Parameters
    ----------
    costs
        Holds the result of ``probe``.
    probe
        Measures the baseline.
    phases
        The phases.
    """
    return [Term(term.name, term.bytes, term.source, phases) for term in baseline.terms(costs, probe)]


def warm_up_for(manifest: Mapping[str, Any], warm_up: str) -> str:
    """The warm-up of a command for a model: a filter needs SciPy too.

    Parameters
    ----------
    manifest
        ``model.json``.
    warm_up
        ``SCORING``, ``ANSWERING`` or ``SERVING``.
    """
    return _FILTERED[warm_up] if uses_interactions(manifest) else warm_up


def uses_interactions(manifest: Mapping[str, Any]) -> bool:
    """True for a linear model that scores by the interactions; a spectral one is a model of factors."""
    return bool(manifest["kind"] == "linear" and manifest["hyper"].get("form") == "filter")
