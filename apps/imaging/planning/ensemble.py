"""Memory of ``imaging ensemble``: pure prices."""

from collections.abc import Sequence
from dataclasses import dataclass

from apps.imaging.models.model_folder import ImagingModel
from apps.imaging.planning import baselines
from apps.imaging.planning.train import MORE_FOR_EXPORT
from common.engines.base import NETWORK
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import OneSetting, Setting
from common.memory.process.budget import MIB

JOIN = "join"
"""The one phase."""
COPIES, TRACED_BYTES = 3.5, 18 * MIB
"""Sizes of a network in float32 that are held at a time, and its graph while it is traced and written (measured
together 25 MiB with 2.8 MiB of weights in three levels, 46 with 9.5 MiB in two)."""


@dataclass(frozen=True, slots=True)
class EnsembleWorkload(OneSetting):
    """``imaging ensemble``: the networks, and their export as one."""

    models: Sequence[ImagingModel]
    threads: int
    name: str = "imaging ensemble"

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline."""
        return [
            baseline.probe(
                baselines.ENSEMBLE, libraries=("torch", "monai", "onnx", "safetensors"), threads=self.threads
            )
        ]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Baseline, and the weights as often as they are held."""
        weights = sum((model.directory / NETWORK).stat().st_size for model in self.models)
        traced = TRACED_BYTES + MORE_FOR_EXPORT.get(self.models[0].network, 0)
        return Footprint.of(
            [
                *baseline.terms(costs, self.probes(setting)[0]),
                Term("copies of the weights", int(COPIES * weights), "measured", (JOIN,)),
                Term("ONNX export", len(self.models) * traced, "measured", (JOIN,)),
            ]
        )
