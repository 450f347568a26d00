"""Memory of ``imaging compress``: pure prices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from apps.imaging.inference.quantization import CALIBRATE, QUANTISE, CompressRequest
from apps.imaging.planning import baselines
from apps.imaging.planning.reading import LIBRARIES, OBJECTS_BYTES, input_bytes, pass_bytes, reader_bytes
from common.engines import quantization
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting
from common.tiling.blend import FLOAT

SPREAD = 1.05
"""Quantisations differ from run to run by up to this factor."""


@dataclass(frozen=True, slots=True)
class CompressWorkload:
    """``imaging compress --int8``: volumes one after the other, then NNCF."""

    request: CompressRequest
    name: str = "imaging compress"

    def settings(self) -> Iterator[Setting]:
        """The only setting."""
        yield {"precision": "int8", "tiles": self.request.options.tiles}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline, and a quantisation with noise."""
        model, threads = self.request.model, self.request.options.threads
        return [
            baseline.probe(baselines.COMPRESS, libraries=(*LIBRARIES, *quantization.LIBRARIES), threads=threads),
            quantization.probe(
                warm_up=baselines.COMPRESS,
                threads=threads,
                sha256=model.network_sha256,
                model_dir=str(model.directory),
                tile=model.patch,
            ),
        ]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Baseline, the reading of a volume, and the quantisation."""
        base, measured = self.probes(setting)
        model, grids = self.request.model, self.request.grids
        tile = prod(model.patch) * len(model.channels) * FLOAT
        terms = [
            Term("small objects", OBJECTS_BYTES, "measured", (CALIBRATE, QUANTISE)),
            Term("input planes", max(input_bytes(grid).peak for grid in grids), "analytic", (CALIBRATE,)),
            Term("statistics", max(map(pass_bytes, grids)), "analytic", (CALIBRATE,)),
            Term("reading", max(map(reader_bytes, grids)), "measured", (CALIBRATE,)),
            Term("tiles", 2 * tile, "analytic", (CALIBRATE, QUANTISE)),
            Term("quantisation", int(SPREAD * costs[measured]["bytes"]), "measured", (QUANTISE,)),
        ]
        return Footprint.of([*baseline.terms(costs, base), *terms])

    def seconds(self, setting: Setting) -> float:
        """Any constant: there is one setting to choose."""
        return 1.0
