"""What ``imaging evaluate`` needs: pure prices; the scan in the planning phase has counted the surfaces."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from apps.imaging.evaluation.metrics import COORDINATE, QUERY, TOLERANCE, Pair, Scan
from apps.imaging.planning import baselines
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting
from common.tiling.blend import FLOAT


@dataclass(frozen=True, slots=True)
class EvaluateWorkload:
    """``imaging evaluate``: the scan in the planning phase has counted the surfaces that the distances need."""

    pairs: Sequence[Pair]
    scans: Sequence[Scan]
    threads: int
    name: str = "imaging evaluate"

    def settings(self) -> Iterator[Setting]:
        """Nothing is left open."""
        yield {"tolerance_mm": TOLERANCE}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """Only the baseline."""
        return [baseline.probe(baselines.EVALUATE, libraries=("nibabel", "scipy", "numpy"), threads=self.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Baseline, a few planes of both files, and the surfaces of the largest case."""
        terms = [
            Term("planes", max(_plane_bytes(pair) for pair in self.pairs), "analytic", ("evaluate",)),
            Term("surfaces", max(_surface_bytes(found) for found in self.scans), "analytic", ("evaluate",)),
            Term("distances", max(_distance_bytes(found) for found in self.scans), "measured", ("evaluate",)),
            Term("reading", 2 * max(pair.reference.reader_bytes for pair in self.pairs), "measured", ("evaluate",)),
        ]
        return Footprint.of([*baseline.terms(costs, self.probes(setting)[0]), *terms])

    def seconds(self, setting: Setting, costs: Costs) -> float:
        """There is one setting."""
        return 1.0


POINT_BYTES = 3 * np.dtype(COORDINATE).itemsize
TREE_POINT_BYTES = 56
"""A k-d tree's coordinates, order and nodes for one point (measured 48 to 56)."""
QUERY_POINT_BYTES = 40
"""Coordinates, distance and index of a point being asked for."""


def _plane_bytes(pair: Pair) -> int:
    """Three label planes as int32 with the next as read and in float32, and masks."""
    x, y, _ = pair.prediction.shape
    return x * y * (3 * 4 + 3 * FLOAT + 4)


def _surface_bytes(found: Scan) -> int:
    return POINT_BYTES * sum(sum(side.values()) for side in found.surface)


def _distance_bytes(found: Scan) -> int:
    """The class with the most surface: one tree at a time, and both results."""
    sizes = [tuple(side.get(value, 0) for side in found.surface) for value in found.values] or [(0, 0)]
    largest = max(TREE_POINT_BYTES * max(pair) + 8 * sum(pair) for pair in sizes)
    return largest + QUERY_POINT_BYTES * min(QUERY, max(max(pair) for pair in sizes))
