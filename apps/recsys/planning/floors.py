"""The baselines of the commands: their warm-up functions by name, and the terms made of measuring them."""

from __future__ import annotations

from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Term

READING = "apps.recsys.warm_up:reading"
TRAINING = "apps.recsys.warm_up:training"
LEARNING = "apps.recsys.warm_up:learning"
PAIRING = "apps.recsys.warm_up:pairing"
SCORING = "apps.recsys.warm_up:scoring"
ANSWERING = "apps.recsys.warm_up:answering"
SERVING = "apps.recsys.warm_up:serving"
LIBRARIES = ("numpy", "scipy", "pyarrow", "implicit", "safetensors")


def baseline_terms(costs: Costs, probe: Probe, *phases: str) -> list[Term]:
    """The baseline measured by ``probe``, as terms of some phases only."""
    return [Term(term.name, term.bytes, term.source, phases) for term in baseline.terms(costs, probe)]
