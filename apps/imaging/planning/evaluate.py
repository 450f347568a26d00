"""Memory of ``imaging evaluate``: pure prices, from the surfaces that were counted while planning."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from apps.imaging.evaluation.metrics import COORDINATE, QUERY, Pair, Scan
from apps.imaging.evaluation.request import EvaluateRequest
from apps.imaging.planning import baselines
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting

POINT_BYTES = 3 * np.dtype(COORDINATE).itemsize
TREE_POINT_BYTES = 56
"""A k-d tree's coordinates, order and nodes for one point (measured 48 to 56)."""
QUERY_POINT_BYTES = 40
"""Coordinates, distance and index of a point whose nearest neighbour is searched."""


@dataclass(frozen=True, slots=True)
class EvaluateWorkload:
    """``imaging evaluate``: cases one after the other."""

    request: EvaluateRequest
    name: str = "imaging evaluate"

    def settings(self) -> Iterator[Setting]:
        """The only setting."""
        yield {"tolerance_mm": self.request.options.tolerance}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """Only the baseline."""
        libraries, threads = ("nibabel", "scipy", "numpy"), self.request.options.threads
        return [baseline.probe(baselines.EVALUATE, libraries=libraries, threads=threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Baseline, a few planes of both files, and the surfaces of the largest case."""
        pairs, scans = self.request.pairs, self.request.scans
        terms = [
            Term("planes", max(map(_plane_bytes, pairs)), "analytic", ("evaluate",)),
            Term("surfaces", max(map(_surface_bytes, scans)), "analytic", ("evaluate",)),
            Term("distances", max(map(_distance_bytes, scans)), "measured", ("evaluate",)),
            Term(
                "reading",
                2 * max(max(one.volume.reader_bytes for one in (pair.prediction, pair.reference)) for pair in pairs),
                "measured",
                ("evaluate",),
            ),
        ]
        return Footprint.of([*baseline.terms(costs, self.probes(setting)[0]), *terms])

    def seconds(self, setting: Setting) -> float:
        """Any constant: there is one setting to choose."""
        return 1.0


def _plane_bytes(pair: Pair) -> int:
    """Three label planes of one file, the next as read and twice in double precision, and masks."""
    x, y, _ = pair.prediction.volume.shape
    stored = max(pair.prediction.volume.dtype.itemsize, pair.reference.volume.dtype.itemsize)
    return x * y * (3 * 8 + stored + 2 * 8 + 5)


def _surface_bytes(scan: Scan) -> int:
    return POINT_BYTES * sum(sum(side.values()) for side in scan.surface)


def _distance_bytes(scan: Scan) -> int:
    """The class with the most surface: one tree at a time, and both results."""
    sizes = [tuple(side.get(value, 0) for side in scan.surface) for value in scan.values] or [(0, 0)]
    largest = max(TREE_POINT_BYTES * max(pair) + 8 * sum(pair) for pair in sizes)
    return largest + QUERY_POINT_BYTES * min(QUERY, max(max(pair) for pair in sizes))
