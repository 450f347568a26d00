"""Memory of ``imaging fingerprint``: pure prices."""

from collections.abc import Sequence
from dataclasses import dataclass

from apps.imaging.planning import baselines
from apps.imaging.training.data.facts import reading_bytes, sample_bytes
from apps.imaging.training.proposal.fingerprint import READ, FingerprintRequest
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import OneSetting, Setting


@dataclass(frozen=True, slots=True)
class FingerprintWorkload(OneSetting):
    """``imaging fingerprint``: cases one after the other."""

    request: FingerprintRequest
    name: str = "imaging fingerprint"

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """Only the baseline."""
        threads = self.request.options.threads
        return [baseline.probe(baselines.FINGERPRINT, libraries=("nibabel", "numpy"), threads=threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Baseline, a few planes of the case that has the largest, and the kept intensities of all."""
        dataset = self.request.dataset
        cases, channels = len(dataset.cases), len(dataset.channels)
        terms = [
            Term("planes", max(map(reading_bytes, dataset.cases)), "analytic", (READ,)),
            Term("sampled intensities", sample_bytes(cases, channels), "analytic", (READ,)),
        ]
        return Footprint.of([*baseline.terms(costs, self.probes(setting)[0]), *terms])
