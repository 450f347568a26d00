"""What ``imaging compress`` needs: pure prices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from apps.imaging.inference.quantization import CALIBRATE, QUANTISE, Job
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

    job: Job
    threads: int
    name: str = "imaging compress"

    def settings(self) -> Iterator[Setting]:
        """Nothing is left open."""
        yield {"precision": "int8", "tiles": self.job.tiles}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline, and a quantisation with noise."""
        model = self.job.model
        return [
            baseline.probe(baselines.COMPRESS, libraries=(*LIBRARIES, *quantization.LIBRARIES), threads=self.threads),
            quantization.probe(
                warm_up=baselines.COMPRESS,
                threads=self.threads,
                sha256=model.network_sha256,
                model_dir=str(model.directory.resolve()),
                tile=model.patch,
            ),
        ]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Baseline, what reads a volume, and what the quantisation holds."""
        base, measured = self.probes(setting)
        job, cases = self.job, self.job.cases
        tile = prod(job.model.patch) * len(job.model.channels) * FLOAT
        reading = max(map(reader_bytes, cases))
        terms = [
            Term("small objects", OBJECTS_BYTES, "measured", (CALIBRATE, QUANTISE)),
            Term("input planes", max(input_bytes(case).peak for case in cases), "analytic", (CALIBRATE,)),
            Term("statistics", max(map(pass_bytes, cases)), "analytic", (CALIBRATE,)),
            Term("reading", reading, "measured", (CALIBRATE,)),
            Term("tiles", 2 * tile, "analytic", (CALIBRATE, QUANTISE)),
            Term("quantisation", int(SPREAD * costs[measured]["bytes"]), "measured", (QUANTISE,)),
        ]
        return Footprint.of([*baseline.terms(costs, base), *terms])

    def seconds(self, setting: Setting, costs: Costs) -> float:
        """There is one setting."""
        return 1.0
